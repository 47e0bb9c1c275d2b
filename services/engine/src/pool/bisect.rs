//! Finds the inputs on which a model fails, among those that ran together.

use crate::{ItemError, Reason};

/// Computes items together, and those again, in halves, whose failure may be another's fault ([`ItemError::shared`]): who
/// fails alone has only itself to blame. For n items that costs at most log2 n more runs of them all; two if one item
/// harms all; none for failures that are of one item in any case.
///
/// `together` gives one outcome per item, in their order.
pub(super) fn run<O>(
    count: usize,
    mut together: impl FnMut(&[usize]) -> Vec<Result<O, ItemError>>,
) -> Vec<Result<O, ItemError>> {
    let mut results: Vec<_> = (0..count).map(|_| None).collect();
    let mut waiting: Vec<Vec<usize>> = vec![(0..count).collect()];
    while let Some(items) = waiting.pop().filter(|items| !items.is_empty()) {
        let mut again = Vec::new();
        for (&item, outcome) in items.iter().zip(together(&items)) {
            if items.len() > 1 && outcome.as_ref().is_err_and(ItemError::is_shared) {
                again.push(item);
            }
            results[item] = Some(outcome);
        }
        let half = again.split_off(again.len().div_ceil(2));
        waiting.extend([half, again].into_iter().filter(|items| !items.is_empty()));
    }
    results.into_iter().map(|outcome| outcome.unwrap_or_else(no_answer)).collect()
}

/// What becomes of an item that a model forgot.
pub(super) fn no_answer<O>() -> Result<O, ItemError> {
    Err(ItemError::new(Reason::Engine, "the model gave no answer for this input").shared())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shared() -> ItemError {
        ItemError::new(Reason::Engine, "").shared()
    }

    /// What becomes of the items if these are poison, and how many were computed in all.
    fn outcomes(poison: &[bool], harm: impl Fn(&[usize], usize) -> bool) -> (Vec<bool>, usize) {
        let mut computed = 0;
        let results = run(poison.len(), |items| {
            computed += items.len();
            let outcome = |item: usize| if harm(items, item) { Err(shared()) } else { Ok(item) };
            items.iter().map(|&item| outcome(item)).collect()
        });
        let right = |(item, result): (usize, &Result<usize, ItemError>)| result.as_ref().map_or(true, |of| *of == item);
        assert!(results.iter().enumerate().all(right), "an item has another's result");
        (results.iter().map(Result::is_err).collect(), computed)
    }

    proptest! {
        #[test]
        fn exactly_the_poison_items_fail_whomever_they_harm(
            poison in prop::collection::vec(prop::bool::weighted(0.1), 1..100), reach in 0_usize..100,
        ) {
            // All that ran with it, only itself, or something between.
            let harm = |items: &[usize], item: usize| items.iter().any(|&other| poison[other] && other.abs_diff(item) <= reach);
            let (failed, computed) = outcomes(&poison, harm);
            prop_assert_eq!(&failed, &poison);
            let levels = poison.len().next_power_of_two().ilog2() as usize + 1;
            prop_assert!(computed <= poison.len() * levels);
        }

        #[test]
        fn one_item_that_harms_all_costs_the_work_of_two_more_runs(count in 1_usize..300, at in 0_usize..300) {
            let poison: Vec<_> = (0..count).map(|item| item == at % count).collect();
            let (failed, computed) = outcomes(&poison, |items, _| items.iter().any(|&item| poison[item]));
            prop_assert_eq!(failed, poison);
            // Each half once, the half of the poison's half, and so on; rounded up at each step.
            let levels = count.next_power_of_two().ilog2() as usize;
            prop_assert!(computed <= 3 * count + 2 * levels, "{computed}");
        }
    }

    #[test]
    fn failures_of_one_item_and_of_an_item_alone_are_final() {
        let own = |reason| ItemError::new(reason, "");
        for (count, error) in [(5, own(Reason::Engine)), (5, own(Reason::Abandoned)), (1, shared())] {
            let mut runs = 0;
            let results = run(count, |items| {
                runs += 1;
                items.iter().map(|_| Err::<(), _>(error.clone())).collect()
            });
            assert_eq!((runs, results.len()), (1, count));
        }
    }

    #[test]
    fn no_items_are_not_run() {
        assert!(run(0, |_| -> Vec<Result<(), ItemError>> { panic!("run") }).is_empty());
    }
}

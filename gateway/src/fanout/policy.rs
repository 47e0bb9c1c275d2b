//! What a failed step means for the others: a pure count of what has ended.

/// When a fan-out has what it needs, or cannot get it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Every step runs to its end.
    Partial,
    /// The first failure is that of the whole.
    FailFast,
    /// So many steps must be OK.
    Quorum(usize),
}

/// What follows from the steps that have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The others go on.
    Open,
    /// The others are not needed.
    Enough,
    /// The step that ended last has failed the whole.
    Failed,
    /// The quorum is out of reach; so many steps have failed.
    OutOfReach { failed: usize },
}

/// Counts steps that are not optional. Those that are decide nothing.
#[derive(Debug)]
pub(super) struct Tally {
    policy: Policy,
    open: usize,
    ok: usize,
    failed: usize,
}

impl Tally {
    /// Of a fan-out in which so many steps are not optional.
    pub(super) fn new(policy: Policy, required: usize) -> Self {
        Self { policy, open: required, ok: 0, failed: 0 }
    }

    /// A step that is not optional has ended.
    pub(super) fn count(&mut self, ok: bool) -> Verdict {
        self.open -= 1;
        *(if ok { &mut self.ok } else { &mut self.failed }) += 1;
        match self.policy {
            Policy::FailFast if !ok => Verdict::Failed,
            Policy::Quorum(quorum) if self.ok >= quorum => Verdict::Enough,
            Policy::Quorum(quorum) if self.ok + self.open < quorum => Verdict::OutOfReach { failed: self.failed },
            Policy::Partial | Policy::FailFast | Policy::Quorum(_) => Verdict::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: Policy, required: usize, ends: &[bool], last: Verdict) {
        let mut tally = Tally::new(policy, required);
        let verdicts: Vec<_> = ends.iter().map(|ok| tally.count(*ok)).collect();
        let (end, before) = verdicts.split_last().unwrap();
        assert!(before.iter().all(|verdict| *verdict == Verdict::Open), "{verdicts:?}");
        assert_eq!(*end, last, "{policy:?} {ends:?}");
    }

    #[test]
    fn partial_goes_on_whatever_happens() {
        check(Policy::Partial, 3, &[false, false, false], Verdict::Open);
        check(Policy::Partial, 1, &[true], Verdict::Open);
    }

    #[test]
    fn fail_fast_ends_with_the_first_failure() {
        check(Policy::FailFast, 3, &[true, false], Verdict::Failed);
        check(Policy::FailFast, 2, &[true, true], Verdict::Open);
    }

    #[test]
    fn a_quorum_ends_when_it_is_reached_or_out_of_reach() {
        check(Policy::Quorum(2), 3, &[true, true], Verdict::Enough);
        check(Policy::Quorum(2), 3, &[true, false, true], Verdict::Enough);
        check(Policy::Quorum(2), 3, &[false, false], Verdict::OutOfReach { failed: 2 });
        check(Policy::Quorum(3), 3, &[true, false], Verdict::OutOfReach { failed: 1 });
        check(Policy::Quorum(1), 1, &[false], Verdict::OutOfReach { failed: 1 });
    }
}

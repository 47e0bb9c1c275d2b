//! Decides whether a call that failed is tried again, and keeps trying again within a budget.
//!
//! Two questions are kept apart. May the call be repeated: only if it cannot have been processed, or if its method
//! declares in the contract that repeating it does no harm. Should it be: only within `attempts_max`, and within a budget
//! that calls fill and retries empty, so that retries never multiply the load of a mesh that is already failing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tonic::Code;

use crate::route::Repeat;

/// One retry in the budget's unit: thousandths, so that a ratio is an integer.
const RETRY: u64 = 1000;

/// How an attempt failed, as far as it matters for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It never left: no connection.
    Unsent,
    /// It never left: every connection to the replica is full.
    Full,
    /// The replica says that it did not process it: REFUSED_STREAM, or beyond the last stream of a GOAWAY.
    Refused,
    /// The connection or the stream was lost, or what came back was not gRPC; it may have been processed.
    Lost,
    /// The replica answered with this status.
    Status(Code, Pushback),
}

/// What the trailer `grpc-retry-pushback-ms` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushback {
    /// No such trailer.
    Absent,
    /// Try this replica again later: another one may be tried now.
    Later,
    /// Negative or unreadable: do not try again at all.
    Never,
}

/// Where the next attempt may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The failure is the answer.
    Nowhere,
    /// To a replica that has not been tried and is idle: this one is full, and so may be a busy one.
    ToIdle,
    /// To a replica that has not been tried.
    Elsewhere,
    /// Best to one that has not been tried, else to any: this one may be back already. The replica is waited for.
    Anywhere,
}

/// Where a call may go after `failure`.
pub(crate) fn next(failure: Failure, repeat: Repeat) -> Next {
    match (failure, repeat) {
        (Failure::Unsent | Failure::Refused, _) | (Failure::Lost, Repeat::Safe) => Next::Anywhere,
        (Failure::Full, _) => Next::Elsewhere,
        (Failure::Status(_, Pushback::Never), _) | (_, Repeat::Unsafe) => Next::Nowhere,
        (Failure::Status(Code::Unavailable, _), Repeat::Safe) => Next::Elsewhere,
        // Without pushback it is a message that will never fit, not a queue that is full now.
        (Failure::Status(Code::ResourceExhausted, Pushback::Later), Repeat::Safe) => Next::ToIdle,
        (Failure::Status(..), Repeat::Safe) => Next::Nowhere,
    }
}

/// A token bucket: calls fill it a little, retries empty it.
#[derive(Debug)]
pub(crate) struct Budget {
    tokens: AtomicU64,
    capacity: u64,
    per_call: u64,
}

impl Budget {
    /// A full budget for `burst` retries, to which every call adds `ratio` of a retry.
    pub(crate) fn new(burst: u32, ratio: f64) -> Self {
        let capacity = u64::from(burst) * RETRY;
        let per_call = (ratio.clamp(0.0, 1.0) * RETRY as f64) as u64;
        Self { tokens: AtomicU64::new(capacity), capacity, per_call }
    }

    /// A call begins.
    pub(crate) fn deposit(&self) {
        // A full bucket is the normal case, and costs no write to a cache line that all workers share.
        if self.tokens.load(Relaxed) < self.capacity {
            let add = |tokens: u64| Some((tokens + self.per_call).min(self.capacity));
            _ = self.tokens.fetch_update(Relaxed, Relaxed, add);
        }
    }

    /// Takes a retry if there is one.
    pub(crate) fn withdraw(&self) -> bool {
        self.tokens.fetch_update(Relaxed, Relaxed, |tokens| tokens.checked_sub(RETRY)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(failure: Failure, safe: Next, otherwise: Next) {
        assert_eq!(next(failure, Repeat::Safe), safe, "{failure:?}");
        assert_eq!(next(failure, Repeat::Unsafe), otherwise, "{failure:?}");
    }

    #[test]
    fn what_was_not_processed_may_always_be_repeated() {
        check(Failure::Unsent, Next::Anywhere, Next::Anywhere);
        check(Failure::Refused, Next::Anywhere, Next::Anywhere);
        check(Failure::Full, Next::Elsewhere, Next::Elsewhere);
    }

    #[test]
    fn what_may_have_been_processed_is_repeated_only_if_that_is_harmless() {
        check(Failure::Lost, Next::Anywhere, Next::Nowhere);
        check(Failure::Status(Code::Unavailable, Pushback::Absent), Next::Elsewhere, Next::Nowhere);
        check(Failure::Status(Code::Unavailable, Pushback::Later), Next::Elsewhere, Next::Nowhere);
    }

    #[test]
    fn a_full_replica_is_left_for_an_idle_one_only() {
        check(Failure::Status(Code::ResourceExhausted, Pushback::Later), Next::ToIdle, Next::Nowhere);
        check(Failure::Status(Code::ResourceExhausted, Pushback::Absent), Next::Nowhere, Next::Nowhere);
    }

    #[test]
    fn answers_are_answers() {
        for code in [Code::InvalidArgument, Code::Internal, Code::DeadlineExceeded, Code::NotFound, Code::Unknown] {
            check(Failure::Status(code, Pushback::Absent), Next::Nowhere, Next::Nowhere);
        }
        check(Failure::Status(Code::Unavailable, Pushback::Never), Next::Nowhere, Next::Nowhere);
    }

    #[test]
    fn an_empty_budget_is_filled_by_calls() {
        let budget = Budget::new(2, 0.5);
        assert!(budget.withdraw() && budget.withdraw());
        assert!(!budget.withdraw());
        budget.deposit();
        assert!(!budget.withdraw());
        budget.deposit();
        assert!(budget.withdraw());
    }

    #[test]
    fn a_budget_never_exceeds_its_burst() {
        let budget = Budget::new(1, 1.0);
        for _ in 0..100 {
            budget.deposit();
        }
        assert!(budget.withdraw());
        assert!(!budget.withdraw());
    }
}

//! What computes models here: kernels, precision, pages of memory.

use engine::{Compute, DeviceChoice, PathChoice, PrecisionChoice, Tier};

use super::finding::Finding;

/// The kernels that this CPU can run.
pub(crate) fn judge_kernels(best: Tier) -> Finding {
    const CHECK: &str = "kernels";
    let what = match best {
        Tier::Avx512Dot => "the best; bf16 is fast here, so that auto means bf16 for models with kernels",
        Tier::Avx512 | Tier::Avx2 => "bf16 is no faster than f32 here, so that auto means f32",
        Tier::Portable => {
            let help = "models run several times slower than on a processor with AVX2: use one, if there is a choice";
            return Finding::warn(CHECK, best.as_str(), "those for any processor; auto means f32").help(help);
        }
    };
    Finding::ok(CHECK, best.as_str(), what)
}

/// What a service would compute with, by its configuration.
pub(crate) fn judge(role: &str, compute: Compute, best: Tier) -> Finding {
    let Compute { device, path, precision } = compute;
    let tier = match path {
        PathChoice::Auto => Some(best),
        PathChoice::Kernels(tier) => Some(tier),
        PathChoice::Candle => None,
    };
    let kernels = tier.filter(|_| device == DeviceChoice::Cpu);
    let by = kernels.map_or_else(|| "candle".to_owned(), |tier| format!("the kernels for {tier}, else candle"));
    let with = match (precision, kernels) {
        (PrecisionChoice::Only(precision), _) => format!("{precision}, by compute.precision"),
        (PrecisionChoice::Auto, Some(tier)) if tier.has_bf16() => "bf16, in f32 where candle computes".to_owned(),
        (PrecisionChoice::Auto, _) => "f32".to_owned(),
    };
    let what = format!("on {device} by {by}; in {with}, unless a manifest says otherwise");
    Finding::ok("precision", role, what)
}

/// The system's huge pages, by /sys/kernel/mm/transparent_hugepage/enabled: weights are read from end to end, and with
/// small pages the processor spends much of its time on finding them.
pub(crate) fn judge_pages(enabled: Option<&str>) -> Finding {
    const CHECK: &str = "huge pages";
    let chosen = enabled.and_then(|text| text.split_once('[')?.1.split_once(']')).map(|(chosen, _)| chosen);
    match chosen {
        Some(chosen @ ("always" | "madvise")) => Finding::ok(CHECK, chosen, "weights get them"),
        Some(chosen) => {
            let help = "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
            Finding::warn(CHECK, chosen, "weights lie in small pages, and are read more slowly").help(help)
        }
        None => Finding::ok(CHECK, "-", "the system does not say"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Mark;

    #[track_caller]
    fn check(finding: &Finding, mark: Mark, part: &str) {
        assert_eq!((finding.mark, finding.help.is_some()), (mark, mark != Mark::Ok), "{finding:?}");
        assert!(format!("{} {}", finding.subject, finding.what).contains(part), "{finding:?}");
    }

    #[test]
    fn what_auto_means_is_said_of_every_tier() {
        check(&judge_kernels(Tier::Avx512Dot), Mark::Ok, "auto means bf16");
        check(&judge_kernels(Tier::Avx512), Mark::Ok, "avx512 bf16 is no faster");
        check(&judge_kernels(Tier::Avx2), Mark::Ok, "auto means f32");
        check(&judge_kernels(Tier::Portable), Mark::Warn, "auto means f32");
    }

    #[test]
    fn what_a_service_is_told_is_said_with_what_comes_of_it() {
        let says = |text: [&str; 3], best: Tier, part: &str| {
            let [device, path, precision] = text;
            let compute = Compute {
                device: device.parse().unwrap(),
                path: path.parse().unwrap(),
                precision: precision.parse().unwrap(),
            };
            check(&judge("vision", compute, best), Mark::Ok, part);
        };
        says(["cpu", "auto", "auto"], Tier::Avx512Dot, "by the kernels for avx512-dot, else candle; in bf16");
        says(["cpu", "auto", "auto"], Tier::Avx2, "by the kernels for avx2, else candle; in f32");
        says(["cpu", "avx2", "auto"], Tier::Avx512Dot, "for avx2, else candle; in f32, unless");
        says(["cpu", "candle", "auto"], Tier::Avx512Dot, "vision on cpu by candle; in f32");
        says(["cuda:0", "auto", "auto"], Tier::Avx512Dot, "on cuda:0 by candle; in f32");
        says(["cpu", "auto", "f32"], Tier::Avx512Dot, "in f32, by compute.precision");
    }

    #[test]
    fn small_pages_are_a_warning() {
        check(&judge_pages(Some("always [madvise] never\n")), Mark::Ok, "madvise");
        check(&judge_pages(Some("[always] madvise never\n")), Mark::Ok, "always");
        check(&judge_pages(Some("always madvise [never]\n")), Mark::Warn, "never");
        check(&judge_pages(None), Mark::Ok, "does not say");
    }
}

//! What a run computes with, and how it is tried again where that is too little.

use anyhow::Result;
use tch::Kind;

use crate::fault;
use crate::report::human_bytes;

/// What an attempt computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// Of the forward pass.
    pub kind: Kind,
    /// Bytes of a GPU's memory that the plan may take; `None`: as the settings say.
    pub vram: Option<u64>,
}

/// A number of the forward pass was beyond the largest of its kind.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the model overflows {kind:?}; try --dtype float32")]
pub struct Overflow {
    pub kind: Kind,
}

/// Calls `attempt` until it succeeds or fails for another reason than its means: while a GPU's memory runs out, each time with fewer
/// bytes of it to plan with than it took the time before, which it says once it knows; and where float16 overflows, in float32, unless
/// the user `asked` for float16.
///
/// # Errors
/// That of the last attempt; where no plan takes so little, of the one before.
pub fn attempt_with<T>(
    mut means: Means,
    asked: bool,
    mut attempt: impl FnMut(Means, &mut Option<u64>) -> Result<T>,
) -> Result<T> {
    let mut full = None;
    loop {
        let mut planned = None;
        let error = match attempt(means, &mut planned) {
            Ok(made) => return Ok(made),
            Err(error) => error,
        };
        let Some(planned) = planned else {
            return Err(full.unwrap_or(error));
        };
        let reason = fault::first_line(&error);
        let overflow = error.downcast_ref::<Overflow>();
        if !asked && overflow.is_some_and(|overflow| overflow.kind == Kind::Half) {
            tracing::warn!("{reason}: computing in float32 instead");
            means.kind = Kind::Float;
            full = None;
        } else if planned > 0 && fault::is_full_gpu(&error) {
            let planned_bytes = human_bytes(planned);
            tracing::warn!("{reason}: trying again with a plan for less than {planned_bytes}");
            means.vram = Some(planned - 1);
            full = Some(error);
        } else {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use tch::TchError;

    use super::*;

    /// Plans of 100, 50 and 10 bytes, of which `enough` is enough; in float32 they are twice as large.
    fn attempts(
        enough: u64,
        asked: bool,
        other: impl Fn(Kind) -> Option<anyhow::Error>,
    ) -> (Result<u64>, Vec<Means>) {
        let mut tried = Vec::new();
        let means = Means {
            kind: Kind::Half,
            vram: None,
        };
        let result = attempt_with(means, asked, |means, planned| {
            tried.push(means);
            let plans = [100, 50, 10].map(|plan| match means.kind {
                Kind::Half => plan,
                _ => 2 * plan,
            });
            let fits = |&plan: &u64| means.vram.is_none_or(|vram| plan <= vram);
            let plan = plans.into_iter().find(fits);
            let plan = plan.ok_or_else(|| anyhow!("no plan"))?;
            *planned = Some(plan);
            if let Some(error) = other(means.kind) {
                return Err(error.context("layer 3"));
            }
            if plan > enough {
                let text = format!("CUDA out of memory. Tried {plan}\nException raised");
                return Err(anyhow::Error::new(TchError::Torch(text)).context("layer 3"));
            }
            Ok(plan)
        });
        (result, tried)
    }

    fn budgets(tried: &[Means]) -> Vec<Option<u64>> {
        tried.iter().map(|means| means.vram).collect()
    }

    fn overflow(kind: Kind) -> Option<anyhow::Error> {
        let error = anyhow!("statistics: 3 values are NaN").context(Overflow { kind });
        (kind == Kind::Half).then_some(error)
    }

    #[test]
    fn a_gpu_that_is_full_is_tried_with_less() {
        let (result, tried) = attempts(60, false, |_| None);
        assert_eq!(result.unwrap(), 50);
        assert_eq!(budgets(&tried), [None, Some(99)]);
        let (result, tried) = attempts(20, false, |_| None);
        assert_eq!(result.unwrap(), 10);
        assert_eq!(budgets(&tried), [None, Some(99), Some(49)]);
    }

    #[test]
    fn no_plan_for_less_and_other_errors_end_it() {
        let (result, tried) = attempts(5, false, |_| None);
        let message = fault::message(&result.unwrap_err());
        assert!(
            message.contains("CUDA out of memory. Tried 10; lower"),
            "{message}"
        );
        assert_eq!(tried.len(), 4);
        let (result, tried) = attempts(5, false, |_| Some(anyhow!("other")));
        assert_eq!(format!("{:#}", result.unwrap_err()), "layer 3: other");
        assert_eq!(tried.len(), 1);
    }

    #[test]
    fn float16_that_overflows_is_float32_unless_it_was_asked_for() {
        let (result, tried) = attempts(30, false, overflow);
        // Too large in float32 at first.
        assert_eq!(result.unwrap(), 20);
        let kinds: Vec<Kind> = tried.iter().map(|means| means.kind).collect();
        let float = Kind::Float;
        assert_eq!(kinds, [Kind::Half, float, float, float]);
        let (result, tried) = attempts(200, true, overflow);
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("try --dtype float32: statistics"), "{error}");
        assert_eq!(tried.len(), 1);
    }
}

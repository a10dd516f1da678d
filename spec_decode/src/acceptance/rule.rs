//! The rules of acceptance, and how users write them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::sampling::SamplingError;

/// The rule by which drafts are accepted.
///
/// On command lines and in reports a rule is written as `coupled`, `rejection`, `typical` (with its default numbers) or
/// `typical:THRESHOLD,ALPHA`.
///
/// ```
/// # use pagedraft_spec_decode::acceptance::Acceptance;
/// assert_eq!("typical".parse(), Ok(Acceptance::typical_default()));
/// assert_eq!("typical:0.2,0.5".parse(), Ok(Acceptance::Typical { threshold: 0.2, alpha: 0.5 }));
/// assert_eq!(Acceptance::default().to_string(), "coupled");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Acceptance {
    /// A draft is accepted when it is the token that the target chooses there with its own noise. The output is exactly
    /// that of the run without drafts, for any proposer.
    #[default]
    Coupled,
    /// A draft d is accepted with probability min(1, p(d) / q(d)), and the first rejected draft is replaced by a draw
    /// from the residual max(p - q, 0) (Leviathan et al. 2023, Chen et al. 2023). This keeps the target's distribution,
    /// but not its draws.
    Rejection,
    /// A draft is accepted when p(d) > min(threshold, alpha exp(-H(p))), and the first rejected draft is replaced by
    /// the argmax of p (Cai et al. 2024, "Medusa", as in vLLM V0). This changes the distribution.
    Typical {
        /// The threshold (epsilon), from 0 to 1.
        threshold: f32,
        /// The factor of exp(-entropy). It is finite and at least 0.
        alpha: f32,
    },
}

impl Acceptance {
    /// The default threshold of typical acceptance, which is vLLM's.
    pub const TYPICAL_THRESHOLD: f32 = 0.09;
    /// The default factor of typical acceptance, which is vLLM's.
    pub const TYPICAL_ALPHA: f32 = 0.3;

    /// Typical acceptance with vLLM's numbers.
    #[must_use]
    pub const fn typical_default() -> Self {
        Self::Typical { threshold: Self::TYPICAL_THRESHOLD, alpha: Self::TYPICAL_ALPHA }
    }

    /// Checks the numbers of the rule.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Typical`] for a number outside its range.
    pub fn validate(self) -> Result<(), SamplingError> {
        match self {
            Self::Typical { threshold, alpha }
                if !((0.0..=1.0).contains(&threshold) && alpha.is_finite() && alpha >= 0.0) =>
            {
                Err(SamplingError::Typical { threshold, alpha })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Acceptance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coupled => f.pad("coupled"),
            Self::Rejection => f.pad("rejection"),
            rule if *rule == Self::typical_default() => f.pad("typical"),
            Self::Typical { threshold, alpha } => write!(f, "typical:{threshold},{alpha}"),
        }
    }
}

impl FromStr for Acceptance {
    type Err = SamplingError;

    fn from_str(text: &str) -> Result<Self, SamplingError> {
        let unknown = || SamplingError::Acceptance { found: text.to_owned() };
        let rule = match text {
            "coupled" => Self::Coupled,
            "rejection" => Self::Rejection,
            "typical" => Self::typical_default(),
            _ => {
                let numbers = text.strip_prefix("typical:").and_then(|n| n.split_once(','));
                let (threshold, alpha) = numbers.ok_or_else(unknown)?;
                let number = |n: &str| n.trim().parse().map_err(|_| unknown());
                Self::Typical { threshold: number(threshold)?, alpha: number(alpha)? }
            }
        };
        rule.validate()?;
        Ok(rule)
    }
}

impl Serialize for Acceptance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

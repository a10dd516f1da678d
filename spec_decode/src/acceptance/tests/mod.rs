//! Tests of acceptance: exactness by draws, rules by written-out formulas, rows that do not fit.

mod chi_square;
mod cost;
mod coupled;
mod exact;
mod rejection;
mod rows;
mod rule;
mod toy;
mod typical;

use super::*;
use crate::sampling::{Noise, Purpose, Sampler, distribution};

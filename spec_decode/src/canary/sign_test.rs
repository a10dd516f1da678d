//! The paired sign test of acceptance, which is valid at every look.

use super::{CanaryAlarm, ShadowRow};

/// The promise on false alarms is made for this many steps.
pub const STEPS: u32 = 100_000;
/// The probability of a false alarm in [`STEPS`] steps is at most this.
pub const FALSE_ALARM: f64 = 1e-3;
/// Evidence of 100 to 1 makes every replayed step shadowed, until it grows to an alarm or is lost.
const SUSPICION: f64 = 100.0;

/// The fractions of its wealth that each bet stakes on "fewer". A large fraction finds a clear fault in few rows, and a
/// small one finds a fault that goes both ways.
const FRACTIONS: [f64; 6] = [0.9, 0.6, 0.3, -0.3, -0.6, -0.9];

/// Bets that one sign comes more often than the other. If nothing is wrong, rows are fair coins.
#[derive(Clone, Debug)]
pub(super) struct SignTest {
    bets: [Bet; FRACTIONS.len()],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bet {
    fraction: f64,
    since: u64,
    fewer: u32,
    more: u32,
    /// The natural logarithm of what a stake of 1 has become.
    ln_wealth: f64,
}

impl SignTest {
    pub fn new() -> Self {
        Self { bets: FRACTIONS.map(|fraction| Bet { fraction, ..Bet::default() }) }
    }

    /// Whether there is enough evidence to shadow every step.
    pub fn suspects(&self) -> bool {
        self.bets.iter().any(|bet| bet.ln_wealth >= SUSPICION.ln())
    }

    pub fn observe(&mut self, step: u64, rows: &[ShadowRow]) -> Option<CanaryAlarm> {
        // Each fraction begins at most one new stake a step, and each stake grows to the limit with a probability of at
        // most its inverse.
        let limit = (f64::from(STEPS) * FRACTIONS.len() as f64 / FALSE_ALARM).ln();
        for bet in &mut self.bets {
            // A stake that has lost begins anew, so that a fault that begins now is not weighed against a healthy past.
            if bet.ln_wealth <= 0.0 {
                *bet = Bet { fraction: bet.fraction, since: step, ..Bet::default() };
            }
        }
        for row in rows {
            for bet in &mut self.bets {
                bet.place(row.accepted_graph, row.accepted_eager);
            }
            let Some(bet) = self.bets.iter().find(|bet| bet.ln_wealth >= limit).copied() else { continue };
            *self = Self::new();
            return Some(CanaryAlarm::Drift {
                step,
                since: bet.since,
                row: *row,
                fewer: bet.fewer,
                more: bet.more,
                odds: bet.ln_wealth.exp(),
            });
        }
        None
    }
}

impl Bet {
    fn place(&mut self, graph: u16, eager: u16) {
        match graph.cmp(&eager) {
            std::cmp::Ordering::Less => {
                self.fewer += 1;
                self.ln_wealth += self.fraction.ln_1p();
            }
            std::cmp::Ordering::Greater => {
                self.more += 1;
                self.ln_wealth += (-self.fraction).ln_1p();
            }
            std::cmp::Ordering::Equal => {}
        }
    }
}

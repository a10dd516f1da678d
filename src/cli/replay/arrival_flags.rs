//! When requests are sent.

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use pagedraft::exit::{usage, usage_hint};
use pagedraft_workloads::arrivals::Arrivals;

use super::numbers::{positive, rate};

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Arrivals")]
pub struct ArrivalFlags {
    /// How arrivals come about (default: as recorded where the trace has times; Poisson where a rate is given; all at once
    /// else)
    #[arg(long, value_enum)]
    arrival_process: Option<Process>,
    /// Requests a second; `inf`: all at once
    #[arg(long, value_name = "R|inf", value_parser = rate, allow_negative_numbers = true)]
    request_rate: Option<f64>,
    /// Shape of the gamma distribution of the gaps: 1 is a Poisson process, less is bursts
    #[arg(long, value_name = "B", value_parser = positive, allow_negative_numbers = true)]
    burstiness: Option<f64>,
    /// Recorded arrivals: so many times as fast (default 1)
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    speed: Option<f64>,
    /// Let the rate grow from --ramp-up-start-rps to --ramp-up-end-rps, over the requests
    #[arg(long, value_enum, requires_all = ["ramp_up_start_rps", "ramp_up_end_rps"])]
    ramp_up_strategy: Option<Ramp>,
    /// Requests a second at the beginning
    #[arg(long, value_name = "R", value_parser = positive, requires = "ramp_up_strategy", allow_negative_numbers = true)]
    ramp_up_start_rps: Option<f64>,
    /// Requests a second at the end
    #[arg(long, value_name = "R", value_parser = positive, requires = "ramp_up_strategy", allow_negative_numbers = true)]
    ramp_up_end_rps: Option<f64>,
    /// Requests in flight at most: later ones wait, from their intended arrival on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrency: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Process {
    /// As the trace has them
    Recorded,
    /// Gaps of an exponential distribution
    Poisson,
    /// Gaps of a gamma distribution
    Gamma,
    /// Gaps of one length
    Constant,
    /// All at the beginning, or as --max-concurrency has room
    AtOnce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ramp {
    /// By a constant amount
    Linear,
    /// By a constant factor
    Exponential,
}

impl ArrivalFlags {
    /// The arrivals that these flags ask for. `timed` says whether the workload has times of its own.
    pub fn arrivals(&self, timed: bool) -> anyhow::Result<Arrivals> {
        let arrivals = self.process(timed)?;
        if self.speed.is_some() && !matches!(arrivals, Arrivals::Recorded { .. }) {
            return Err(usage_hint(
                anyhow!("--speed is for recorded arrivals, and these are not"),
                "leave it out, or --request-rate and --arrival-process",
            ));
        }
        if self.burstiness.is_some() && !matches!(arrivals, Arrivals::Gamma { .. }) {
            return Err(usage_hint(
                anyhow!("--burstiness is for gamma arrivals, and these are not"),
                "use it with --request-rate R, or leave it out",
            ));
        }
        Ok(arrivals)
    }

    fn process(&self, timed: bool) -> anyhow::Result<Arrivals> {
        if let (Some(strategy), Some(from), Some(to)) =
            (self.ramp_up_strategy, self.ramp_up_start_rps, self.ramp_up_end_rps)
        {
            if self.request_rate.is_some() || self.arrival_process.is_some() {
                return Err(usage_hint(
                    anyhow!(
                        "--ramp-up-strategy gives the rate, and so do --request-rate and --arrival-process"
                    ),
                    "leave one of them out",
                ));
            }
            return Ok(Arrivals::Ramp { from, to, exponential: strategy == Ramp::Exponential });
        }
        let process = match (self.arrival_process, self.request_rate) {
            (Some(process), _) => process,
            (None, Some(f64::INFINITY)) => Process::AtOnce,
            (None, Some(_)) => Process::Gamma,
            (None, None) if timed => Process::Recorded,
            (None, None) => Process::AtOnce,
        };
        let drawn = || match self.request_rate {
            Some(rate) if rate.is_finite() => Ok(rate),
            Some(_) => Err(usage_hint(
                anyhow!("--request-rate inf: this --arrival-process needs a finite rate"),
                "say how many requests a second, or use --arrival-process at-once",
            )),
            _ => Err(usage_hint(
                anyhow!("--arrival-process: its rate is not given"),
                "say how many requests a second with --request-rate",
            )),
        };
        let burstiness = self.burstiness.unwrap_or(1.0);
        match process {
            Process::Recorded if self.request_rate.is_some() => Err(usage_hint(
                anyhow!("--request-rate goes with drawn arrivals, not with recorded ones"),
                "use --speed to replay a trace faster or slower",
            )),
            Process::Recorded if !timed => Err(usage_hint(
                anyhow!("--arrival-process recorded: the workload has no arrival times"),
                "use --request-rate R, or --max-concurrency N",
            )),
            Process::Recorded => Ok(Arrivals::Recorded { speed: self.speed.unwrap_or(1.0) }),
            Process::Poisson if self.burstiness.is_some_and(|b| b != 1.0) => Err(usage(anyhow!(
                "--arrival-process poisson has a burstiness of 1; use --arrival-process gamma for {burstiness}"
            ))),
            Process::Poisson => Ok(Arrivals::Gamma { rate: drawn()?, burstiness: 1.0 }),
            Process::Gamma => Ok(Arrivals::Gamma { rate: drawn()?, burstiness }),
            Process::Constant => Ok(Arrivals::Constant { rate: drawn()? }),
            Process::AtOnce if self.request_rate.is_some_and(f64::is_finite) => Err(usage_hint(
                anyhow!("--arrival-process at-once has no rate"),
                "leave --request-rate out, or use --arrival-process poisson",
            )),
            Process::AtOnce => Ok(Arrivals::AtOnce),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: ArrivalFlags,
    }

    fn arrivals(timed: bool, line: &str) -> anyhow::Result<Arrivals> {
        let line = Line::try_parse_from(std::iter::once("x").chain(line.split_whitespace()))?;
        line.flags.arrivals(timed)
    }

    #[test]
    fn what_is_not_said_follows_from_the_trace_and_the_rate() {
        let of = |timed, line: &str| arrivals(timed, line).unwrap();
        assert_eq!(of(true, ""), Arrivals::Recorded { speed: 1.0 });
        assert_eq!(of(false, ""), Arrivals::AtOnce);
        assert_eq!(of(true, "--speed 2"), Arrivals::Recorded { speed: 2.0 });
        assert_eq!(of(true, "--request-rate 3"), Arrivals::Gamma { rate: 3.0, burstiness: 1.0 });
        assert_eq!(
            of(true, "--request-rate 3 --burstiness 0.5"),
            Arrivals::Gamma { rate: 3.0, burstiness: 0.5 }
        );
        assert_eq!(of(true, "--request-rate inf"), Arrivals::AtOnce);
        assert_eq!(of(true, "--arrival-process constant --request-rate 5"), Arrivals::Constant { rate: 5.0 });
        assert_eq!(
            of(false, "--ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 9"),
            Arrivals::Ramp { from: 1.0, to: 9.0, exponential: false }
        );
    }

    #[test]
    fn a_rate_that_is_infinite_is_told_from_one_that_is_missing() {
        let told = |line: &str| arrivals(true, line).unwrap_err().to_string();
        assert!(told("--arrival-process constant --request-rate inf").contains("needs a finite rate"));
        assert!(told("--arrival-process constant").contains("not given"));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (timed, line) in [
            (false, "--arrival-process recorded"),
            (true, "--arrival-process recorded --request-rate 2"),
            (true, "--arrival-process poisson"),
            (true, "--arrival-process gamma --request-rate inf"),
            (true, "--arrival-process poisson --request-rate 2 --burstiness 3"),
            (true, "--arrival-process at-once --request-rate 2"),
            (true, "--burstiness 2"),
            (true, "--speed 2 --request-rate 2"),
            (true, "--ramp-up-strategy linear"),
            (true, "--ramp-up-start-rps 1 --ramp-up-end-rps 2"),
            (true, "--ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 2 --request-rate 3"),
            (true, "--ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 2 --burstiness 3"),
        ] {
            assert!(arrivals(timed, line).is_err(), "{line}");
        }
    }
}

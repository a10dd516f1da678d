//! `--slo ttft=MS,tpot=MS,e2el=MS`.

use pagedraft_workloads::measures::Slo;

/// Reads latency goals, each by its name.
pub fn slo(text: &str) -> Result<Slo, String> {
    Slo::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read_by_name() {
        let all = Slo { ttft_ms: Some(500.0), tpot_ms: Some(1.5), e2el_ms: Some(9000.0) };
        assert_eq!(slo("ttft=500,tpot=1.5,e2el=9000"), Ok(all));
        assert_eq!(slo("tpot=2"), Ok(Slo { tpot_ms: Some(2.0), ..Slo::default() }));
    }

    #[test]
    fn what_is_no_goal_is_told() {
        for bad in ["", "ttft", "ttft=", "ttft=0", "ttft=-1", "itl=3", "ttft=1,ttft=2", "ttft=nan"] {
            assert!(slo(bad).is_err(), "{bad}");
        }
    }
}

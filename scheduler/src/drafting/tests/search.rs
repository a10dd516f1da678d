//! The search is compared with trying every combination of lengths.
use crate::CostCurve;
use crate::drafting::acceptance::Estimate;
use crate::drafting::live_curve::LiveCurve;
use crate::drafting::search::{Base, ProposalCosts, Search, Wake};

const MAX: u16 = 3;

struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn rate(lengths: &[u16], accepted: &[f64], base: &Base, costs: ProposalCosts<'_>) -> f64 {
    let rows = f64::from(base.decode_rows);
    let prefill = f64::from(base.prefill_rows);
    let (mut tokens, mut all) = (rows, rows + prefill);
    for (&k, a) in lengths.iter().zip(accepted) {
        tokens += (1..=i32::from(k)).map(|j| a.powi(j)).sum::<f64>();
        all += f64::from(k);
    }
    let sunk = costs.target.us(rows + prefill) - costs.target.us(rows);
    let mut us = costs.target.us(all) - sunk + base.overhead_us;
    if lengths.iter().any(|&k| k > 0) {
        us += costs.per_step_us;
    }
    for depth in 1..=MAX {
        us += costs.draft.us(lengths.iter().filter(|&&k| k >= depth).count() as f64);
    }
    tokens / us
}

#[test]
fn the_search_is_as_good_as_trying_every_combination() {
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let requests = 1 + (dice.unit() * 4.0) as usize;
        let accepted: Vec<f64> = (0..requests).map(|_| dice.unit() * 0.98).collect();
        let curve = |dice: &mut Dice, of: f64| {
            let mut us = of;
            let mut points = vec![];
            for rows in [1, 2, 4, 5, 8, 12, 16] {
                points.push((rows, us));
                us += of * dice.unit() * dice.unit() * f64::from(rows) / 8.0;
            }
            LiveCurve::new(&CostCurve { points, us_per_context: 0.0, us_per_read: 0.0 })
        };
        let target = curve(&mut dice, 1000.0);
        let share = 0.3 * dice.unit();
        let draft = curve(&mut dice, 1000.0 * share);
        let base = Base {
            decode_rows: requests as u32,
            prefill_rows: (dice.unit() * 6.0) as u32,
            context: 0.0,
            overhead_us: 50.0,
            room: 100,
        };
        let costs = ProposalCosts { target: &target, draft: &draft, per_step_us: 20.0, further: 1.0 };
        let mut best: f64 = 0.0;
        for code in 0..4usize.pow(requests as u32) {
            let lengths: Vec<u16> = (0..requests).map(|i| (code >> (2 * i) & 3) as u16).collect();
            best = best.max(rate(&lengths, &accepted, &base, costs));
        }
        let mut search = Search::new(MAX, &target);
        let cohorts: Vec<u16> = accepted
            .iter()
            .map(|&a| search.add(Estimate { accepted: a, given: 1.0 }, 100, Wake::default()))
            .collect();
        let rates = search.choose(&base, costs, 0.0);
        let lengths: Vec<u16> = cohorts.into_iter().map(|cohort| search.take(cohort)).collect();
        let found = rate(&lengths, &accepted, &base, costs);
        assert!(found > 0.99 * best, "seed {seed}: {lengths:?} for {accepted:?}: {found} of {best}");
        assert!((found / rates.best - 1.0).abs() < 0.02, "seed {seed}: said {}, is {found}", rates.best);
    }
}

#[test]
fn no_more_drafts_are_chosen_than_there_is_room_for() {
    let flat =
        LiveCurve::new(&CostCurve { points: vec![(1, 1000.0)], us_per_context: 0.0, us_per_read: 0.0 });
    let free = LiveCurve::new(&CostCurve::default());
    let mut search = Search::new(MAX, &flat);
    let cohorts = [0.9, 0.5].map(|a| search.add(Estimate { accepted: a, given: 1.0 }, 10, Wake::default()));
    let base = Base { decode_rows: 2, room: 4, ..Base::default() };
    search.choose(&base, ProposalCosts { target: &flat, draft: &free, per_step_us: 0.0, further: 1.0 }, 0.0);
    assert_eq!(cohorts.map(|cohort| search.take(cohort)), [3, 1]);
}

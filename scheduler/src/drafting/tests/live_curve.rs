use crate::CostCurve;
use crate::drafting::live_curve::LiveCurve;

fn curve(points: &[(u32, f64)]) -> LiveCurve {
    LiveCurve::new(&CostCurve { points: points.to_vec(), us_per_context: 0.0, us_per_read: 0.0 })
}

#[test]
fn between_points_it_is_a_line_and_beyond_them_the_last_slope() {
    let curve = curve(&[(8, 200.0), (4, 100.0), (16, 200.0), (3000, 3184.0)]);
    for (rows, us) in
        [(0.0, 0.0), (0.5, 50.0), (1.0, 100.0), (4.0, 100.0), (5.5, 137.5), (12.0, 200.0), (17.0, 201.0)]
    {
        assert!((curve.us(rows) - us).abs() < 1e-9, "{rows}: {}", curve.us(rows));
    }
    assert!((curve.us(4000.0) - 4184.0).abs() < 1e-6, "{}", curve.us(4000.0));
}

#[test]
fn points_that_fall_are_averaged_and_nonsense_is_left_out() {
    let curve = curve(&[(1, 100.0), (2, 130.0), (3, 110.0), (4, f64::NAN), (5, -1.0), (6, 140.0)]);
    assert_eq!([1.0, 2.0, 3.0, 6.0].map(|rows| curve.us(rows)), [100.0, 120.0, 120.0, 140.0]);
    let nothing = LiveCurve::new(&CostCurve::default());
    assert_eq!([nothing.us(0.0), nothing.us(7.0), nothing.us(1e9)], [0.0; 3]);
}

#[test]
fn a_slower_machine_scales_every_size() {
    let mut curve = curve(&[(1, 100.0), (8, 120.0), (64, 400.0)]);
    for _ in 0..400 {
        let predicted = curve.us(8.0);
        curve.observe(8.0, predicted, 180.0);
    }
    assert!((curve.us(8.0) / 180.0 - 1.0).abs() < 0.01, "{}", curve.us(8.0));
    let unvisited = curve.us(64.0) / 600.0;
    assert!((unvisited - 1.0).abs() < 0.1, "a size that was not visited is at {unvisited} of its share");
}

#[test]
fn outliers_hardly_move_it() {
    let mut curve = curve(&[(1, 100.0), (8, 120.0)]);
    for i in 0..2000 {
        let predicted = curve.us(4.0);
        curve.observe(4.0, predicted, if i % 50 == 49 { 2000.0 } else { 110.0 });
    }
    assert!((curve.us(4.0) / 110.0 - 1.0).abs() < 0.03, "{}", curve.us(4.0));
    curve.observe(4.0, 110.0, f64::NAN);
    curve.observe(4.0, 110.0, -1.0);
    assert!(curve.us(4.0).is_finite());
}

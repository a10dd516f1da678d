mod live_curve;
mod search;

//! Ways to prune prompts, and slow models that say what has to stay.

mod slow;
mod slow_sparse;

use std::path::Path;

use pagedraft::prune::PruneChoice;
use pagedraft::session::{Request, RequestPrune};

pub use slow::Slow;
pub use slow_sparse::{SlowSparse, SparsePass, Thinned};

use crate::models::HIDDEN;
use crate::requests::{Random, spec};

/// Prunes about three quarters of the requests, each in one of these ways. Of those that begin alike the dense ones hit each other's prefixes.
pub fn some_pruned(requests: &mut [Request], ways: &[PruneChoice]) {
    for (i, request) in requests.iter_mut().enumerate() {
        let way = RequestPrune::Choice(ways[i % ways.len()].clone());
        request.prune = if i % 3 == 0 && i != 6 { RequestPrune::Never } else { way };
    }
}

/// Modules of random numbers behind layers 1 and 3, and a spec that scores with them and never drops the last `tail` tokens.
pub fn learned(name: &str, tail: u32) -> PruneChoice {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.safetensors"));
    let mut random = Random(17);
    let mut values = |n: usize| -> Vec<u8> {
        let value = |_| ((random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes();
        (0..n).flat_map(value).collect()
    };
    let shapes = [
        ("0.weight", vec![HIDDEN / 4, HIDDEN]),
        ("0.bias", vec![HIDDEN / 4]),
        ("2.weight", vec![1, HIDDEN / 4]),
        ("2.bias", vec![1]),
    ];
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = [1, 3]
        .iter()
        .flat_map(|layer| shapes.clone().map(|(name, shape)| (format!("{layer}.scorer.{name}"), shape)))
        .map(|(name, shape)| {
            let bytes = values(shape.iter().product());
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    spec(&format!(
        r#"{{"layers": [1, 3], "keep_ratio": [0.7, 0.5], "min_tail_tokens": {tail}, "modules": {:?}}}"#,
        path.to_str().unwrap()
    ))
}

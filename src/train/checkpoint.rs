//! Everything a run needs to go on: one safetensors file, replaced whole.

use super::export;
use super::optimise::{AdamW, Moments, Weights};
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// How far a run is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Seconds spent on them.
    pub seconds: f64,
    /// The lowest validation loss so far (infinite before the first).
    pub best: f64,
}

/// The weights that had the lowest validation loss.
pub type Best = HashMap<String, Tensor>;

/// The file of a checkpoint directory.
pub fn file(folder: &Path) -> PathBuf {
    folder.join("state.safetensors")
}

/// A copy of the model's weights that training won't change.
pub fn copy(weights: &Weights) -> Result<Best> {
    weights.iter().map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?))).collect()
}

/// Writes the state of a run into `folder`.
pub fn save(
    folder: &Path,
    weights: &Weights,
    optimiser: &AdamW,
    best: &Best,
    progress: &Progress,
) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let mut all = HashMap::new();
    for (name, var) in weights {
        all.insert(format!("weight/{name}"), var.as_detached_tensor());
    }
    for (name, state) in &optimiser.moments {
        for (kind, values) in [("first", &state.first), ("second", &state.second)] {
            let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
            all.insert(format!("{kind}/{name}"), tensor);
        }
    }
    for (name, tensor) in best {
        all.insert(format!("best/{name}"), tensor.clone());
    }
    let figures = [progress.step as f64, progress.seconds, progress.best];
    all.insert("progress".to_owned(), Tensor::from_slice(&figures, 3, &Device::Cpu)?);
    export::save_tensors(&file(folder), &all)
}

/// What a checkpoint holds.
pub struct State {
    /// The file it was read from.
    pub file: PathBuf,
    /// The weights as they were.
    pub weights: HashMap<String, Tensor>,
    /// The optimiser's.
    pub moments: BTreeMap<String, Moments>,
    /// The weights that were kept.
    pub best: Best,
    /// How far the run was.
    pub progress: Progress,
}

impl State {
    /// The model of the weights, as `build` makes it.
    pub fn model<M>(&self, build: impl FnOnce(&HashMap<String, Tensor>) -> Result<M>) -> Result<M> {
        build(&self.weights).with_context(|| {
            format!("{} is of another model: give the options it was started with", self.file.display())
        })
    }
}

/// Reads what [`save`] wrote.
pub fn load(folder: &Path) -> Result<State> {
    let file = file(folder);
    let all = candle_core::safetensors::load(&file, &Device::Cpu)
        .with_context(|| format!("{} can't be read: run without --resume to start afresh", file.display()))?;
    let part = |prefix: &str| -> HashMap<String, Tensor> {
        let named = all
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())));
        named.collect()
    };
    let weights = part("weight/");
    let mut moments = BTreeMap::new();
    for (name, weight) in &weights {
        let get = |kind: &str| -> Result<Vec<f32>> {
            let tensor = all.get(&format!("{kind}/{name}"));
            let values = tensor
                .with_context(|| format!("{} has no {kind}/{name}", file.display()))?
                .to_vec1::<f32>()?;
            ensure!(values.len() == weight.elem_count(), "{}: {kind}/{name} is cut", file.display());
            Ok(values)
        };
        moments.insert(name.clone(), Moments { first: get("first")?, second: get("second")? });
    }
    let figures = all
        .get("progress")
        .with_context(|| format!("{} has no progress", file.display()))?
        .to_vec1::<f64>()?;
    let [step, seconds, best] = figures[..] else {
        anyhow::bail!("{}: progress has {} figures, not 3", file.display(), figures.len());
    };
    let progress = Progress { step: step as u64, seconds, best };
    Ok(State { weights, moments, best: part("best/"), progress, file })
}

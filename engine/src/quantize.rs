//! Writes a model with its layers' matrices in 8 bits.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use pagedraft_model::Dtype;
use pagedraft_model::checkpoint::{
    Checkpoint, INT8_METHOD, INT8_SCALES, StoredWeights, Tensor, quantised_tensors,
};
use pagedraft_model::cpu::int8::{BLOCK, QuantRow};
use parking_lot::Mutex;
use safetensors::Dtype as StoredDtype;
use safetensors::tensor::View;
use serde_json::{Map, Value, json};

use crate::error::{Context, EngineError, Result};
use crate::session::{ModelRef, builtin_files, open_checkpoint};

/// What [`quantize`] wrote.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The names of the files, in the order in which they were written.
    pub files: Vec<PathBuf>,
    /// Matrices in 8 bits.
    pub matrices: usize,
    /// Bytes of all weights as they were stored, and as they are now.
    pub bytes: (u64, u64),
}

/// The files that [`quantize`] would write for this model, in the order in which it writes them.
///
/// # Errors
///
/// The model does not exist, is a GGUF file, or its directory can't be read.
pub fn files_of(model: &ModelRef) -> Result<Vec<PathBuf>> {
    if let ModelRef::Directory(file) = model
        && file.is_file()
    {
        let error = format!("{model} is a GGUF file, and the files of a directory are quantised");
        return Err(EngineError::input_hint(error, "run it with --quantization int8"));
    }
    let mut files: Vec<PathBuf> = others(model)?.into_iter().map(|(name, _)| name).collect();
    files.extend([PathBuf::from(WEIGHTS), PathBuf::from("config.json")]);
    Ok(files)
}

const WEIGHTS: &str = "model.safetensors";

/// Writes a model into the directory `to`, which exists: the matrices of its layers and an output head of its own in [8 bits](pagedraft_model::cpu::int8), all else as
/// it is. An engine reads it with the same result as it gets from the model itself with `--quantization int8`.
///
/// # Errors
///
/// The model does not exist, can't be read, is a GGUF file, or is in 8 bits already; a file can't be written.
pub fn quantize(model: &ModelRef, to: &Path) -> Result<Quantized> {
    let files = files_of(model)?;
    let checkpoint = open_checkpoint(model)?;
    if checkpoint.config().stored_weights == StoredWeights::Int8 {
        let error = format!("the weights of {model} are in 8 bits already");
        return Err(EngineError::input_hint(error, "run it as it is"));
    }
    for (name, bytes) in others(model)? {
        let path = to.join(name);
        fs::write(&path, bytes).with_context(|| format!("can't write {}", path.display()))?;
    }
    let path = to.join("config.json");
    let config = config(model)?;
    fs::write(&path, config).with_context(|| format!("can't write {}", path.display()))?;
    let path = to.join(WEIGHTS);
    let fault = Mutex::new(None);
    let (tensors, matrices) = tensors(&checkpoint, &fault)?;
    let after = tensors.iter().map(|(_, tensor)| tensor.data_len() as u64).sum();
    let size = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
    let shapes = checkpoint.config().tensors();
    let stored = |(name, shape): &(String, Vec<usize>)| {
        let width = checkpoint.tensor(name, shape).map_or(0, |tensor| tensor.dtype().size() as u64);
        size(shape) * width
    };
    let before = shapes.iter().map(stored).sum();
    safetensors::serialize_to_file(tensors, None, &path)
        .map_err(|e| EngineError::failed(format!("can't write {}: {e}", path.display())))?;
    if let Some(tensor) = fault.into_inner() {
        let error = format!(
            "tensor {tensor} of {model} has a weight that 8 bits can't hold: it is not finite, or beyond 8 million"
        );
        return Err(EngineError::input_hint(error, "run the model with --quantization none"));
    }
    // The library makes a file that nobody else may read.
    let readable = fs::metadata(to.join("config.json")).map(|config| config.permissions());
    readable
        .and_then(|permissions| fs::set_permissions(&path, permissions))
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(Quantized { files, matrices, bytes: (before, after) })
}

/// The configuration, with what says that weights are quantised.
fn config(model: &ModelRef) -> Result<Vec<u8>> {
    let bytes = match model {
        ModelRef::Builtin(name) => Cow::Borrowed(builtin_files(name)?.config),
        ModelRef::Directory(dir) => {
            let path = dir.join("config.json");
            Cow::Owned(fs::read(&path).with_context(|| format!("can't read {}", path.display()))?)
        }
    };
    let mut config: Map<String, Value> = serde_json::from_slice(&bytes)
        .with_context(|| format!("the config.json of {model} is no JSON object"))?;
    let method = json!({"quant_method": INT8_METHOD, "bits": 8, "group_size": BLOCK});
    config.insert("quantization_config".to_owned(), method);
    let text = serde_json::to_vec_pretty(&config);
    text.map_err(|e| EngineError::failed(format!("config.json can't be written: {e}")))
}

/// The files beside configuration and weights: tokenizer, generation configuration, chat template.
fn others(model: &ModelRef) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let dir = match model {
        ModelRef::Builtin(name) => {
            return Ok(vec![(PathBuf::from("tokenizer.json"), builtin_files(name)?.tokenizer.to_vec())]);
        }
        ModelRef::Directory(dir) => dir,
    };
    let cant = |path: &Path| format!("can't read {}", path.display());
    let mut files = Vec::new();
    let entries = fs::read_dir(dir).with_context(|| cant(dir)).map_err(|error| {
        error
            .into_input()
            .hint("name a Hugging Face directory, with config.json and safetensors files, or builtin:NAME")
    })?;
    for entry in entries {
        let path = entry.with_context(|| cant(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let small = [".json", ".jinja", ".model", ".txt", ".md"].iter().any(|end| name.ends_with(end));
        let weights = name == "config.json" || name.ends_with(".index.json");
        if small && !weights && path.is_file() {
            files.push((PathBuf::from(&name), fs::read(&path).with_context(|| cant(&path))?));
        }
    }
    files.sort();
    Ok(files)
}

/// Every tensor that is written, and how many of them are matrices in 8 bits.
fn tensors<'a>(
    checkpoint: &'a Checkpoint,
    fault: &'a Mutex<Option<String>>,
) -> Result<(Vec<(String, Written<'a>)>, usize)> {
    let quantised = quantised_tensors(checkpoint.config());
    let mut all = Vec::new();
    let mut matrices = 0;
    for (name, shape) in checkpoint.config().tensors() {
        // A tied matrix may be stored under the head's name.
        let tensor = match name == checkpoint.config().architecture.embed_tokens() {
            true => checkpoint.embedding()?,
            false => checkpoint.tensor(&name, &shape)?,
        };
        if quantised.contains(&name) {
            matrices += 1;
            let scales = vec![tensor.rows(), QuantRow::num_scales(tensor.row_len())];
            all.push((
                format!("{name}{INT8_SCALES}"),
                Written { tensor: tensor.clone(), shape: scales, part: Part::Scales, fault },
            ));
            all.push((name, Written { tensor, shape, part: Part::Quants, fault }));
        } else {
            all.push((name, Written { tensor, shape, part: Part::Whole, fault }));
        }
    }
    Ok((all, matrices))
}

/// What is written of a tensor.
#[derive(Clone, Copy)]
enum Part {
    /// All of it, in its own type.
    Whole,
    /// The integers of its rows.
    Quants,
    /// The scales of its rows.
    Scales,
}

/// A tensor to be written. Its bytes are made when they are asked for, so that one tensor is in memory at a time.
struct Written<'a> {
    tensor: Tensor<'a>,
    shape: Vec<usize>,
    part: Part,
    /// Takes the name of a tensor with a weight that is not finite, or too large.
    fault: &'a Mutex<Option<String>>,
}

impl Written<'_> {
    fn rows(&self, mut each: impl FnMut(&QuantRow)) {
        let mut row = QuantRow::default();
        for r in 0..self.tensor.rows() {
            row.quantise_with(self.tensor.row_len(), |out| {
                // A row that exists has no error.
                let _ = self.tensor.read_row(r, out);
            });
            if row.scales().iter().any(|scale| scale.is_nan()) {
                *self.fault.lock() = Some(self.tensor.name().to_owned());
            }
            each(&row);
        }
    }

    fn whole(&self) -> Vec<u8> {
        if let Some(bytes) = self.tensor.raw() {
            return bytes.to_vec();
        }
        let mut bytes = Vec::with_capacity(self.data_len());
        let mut row = vec![0.0; self.tensor.row_len()];
        for r in 0..self.tensor.rows() {
            let _ = self.tensor.read_row(r, &mut row);
            for &x in &row {
                match self.tensor.dtype() {
                    Dtype::F32 => bytes.extend(x.to_le_bytes()),
                    Dtype::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
                    Dtype::Bf16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                }
            }
        }
        bytes
    }
}

impl View for Written<'_> {
    fn dtype(&self) -> StoredDtype {
        match (self.part, self.tensor.dtype()) {
            (Part::Quants, _) => StoredDtype::I8,
            (Part::Scales, _) | (Part::Whole, Dtype::F16) => StoredDtype::F16,
            (Part::Whole, Dtype::F32) => StoredDtype::F32,
            (Part::Whole, Dtype::Bf16) => StoredDtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        match self.part {
            Part::Whole => return self.whole().into(),
            Part::Quants => self.rows(|row| bytes.extend(row.quants().iter().map(|&q| q as u8))),
            Part::Scales => {
                self.rows(|row| row.scales().iter().for_each(|scale| bytes.extend(scale.to_le_bytes())));
            }
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        let values: usize = self.shape.iter().product();
        values
            * match self.dtype() {
                StoredDtype::I8 => 1,
                StoredDtype::F32 => 4,
                _ => 2,
            }
    }
}

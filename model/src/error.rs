//! What can go wrong when a model is loaded or run.

use std::path::PathBuf;

/// Everything that can fail when a model is loaded or run. Each message names the file and the thing in it.
///
/// `path` is the file, or the name that the embedded model was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file could not be opened, mapped or read.
    #[error("cannot read {}: {source}{hint}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
        /// What to do about it. It is empty or starts with "; ".
        hint: &'static str,
    },
    /// A file is a Git LFS pointer: the repository was cloned without its large files.
    #[error("{} is a Git LFS pointer and not the file it stands for; run `git lfs pull` in the repository it was cloned from, or download the file", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// The place given for a model holds something else, which is known.
    #[error("{} is {what}; {hint}", path.display())]
    Foreign {
        /// The directory or file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A directory holds no weights in a format that is read here.
    #[error("{} holds neither model.safetensors nor model.safetensors.index.json; {hint}", path.display())]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// What to do about it.
        hint: String,
    },
    /// A JSON file does not parse, or holds another value where an object is needed.
    #[error("{} is not valid: {reason}", path.display())]
    BadJson {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        reason: String,
    },
    /// A field is missing that the model cannot do without.
    #[error("{} has no field `{field}`; expected {expected}", path.display())]
    MissingField {
        /// The file.
        path: PathBuf,
        /// The name of the field, with dots if it is nested.
        field: String,
        /// What should be there.
        expected: &'static str,
    },
    /// A field has a value that makes no sense for a model.
    #[error("{}: `{field}` is {found}; expected {expected}", path.display())]
    BadField {
        /// The file.
        path: PathBuf,
        /// The name of the field, with dots if it is nested.
        field: String,
        /// The value found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The architecture is not one that this engine implements.
    #[error("{}: architecture {found} is not one of those this engine runs ({known})", path.display())]
    UnknownArchitecture {
        /// The file.
        path: PathBuf,
        /// The architecture, or else the model type, that the file names.
        found: String,
        /// The architectures that are implemented, separated by commas.
        known: String,
    },
    /// The model asks for something that is not implemented. Running the model without it would give wrong tokens.
    #[error("{}: {feature} is not supported; {hint}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature, with the field and value that ask for it.
        feature: String,
        /// What is supported instead, or what to do.
        hint: String,
    },
    /// A `.safetensors` file is damaged or contradicts itself.
    #[error("{} is damaged: {reason}", path.display())]
    BadSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file is damaged or contradicts itself.
    #[error("{} is damaged: {reason}", path.display())]
    BadGguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file has a tensor of a type that this engine does not read.
    #[error("{}: tensor `{tensor}` is stored as {found}; {known} are read (quantise the model again, to one of these)", path.display())]
    UnsupportedGgmlType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: String,
        /// The types that are read, separated by commas.
        known: String,
    },
    /// No file holds a tensor that the configuration demands.
    #[error("{} has no tensor `{tensor}`; {hint}", path.display())]
    MissingTensor {
        /// The file, or the directory of a model with several files.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why the tensor is needed, or what to do.
        hint: String,
    },
    /// A file holds a tensor that the configuration has no place for. Ignoring it would give wrong tokens.
    #[error("{} has the tensor `{tensor}`, which the configuration leaves no place for; {hint}", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The field of the configuration that disagrees.
        hint: String,
    },
    /// A tensor's shape differs from the shape that the configuration gives it.
    #[error("{}: tensor `{tensor}` has shape {found:?}; the configuration makes it {expected:?}", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the configuration gives it.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type that this engine does not read.
    #[error("{}: tensor `{tensor}` is stored as {found}; F32, F16 and BF16 are read (convert the checkpoint)", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// The tensor does not have the row that was asked for, or the buffer for it has another length.
    #[error("tensor `{tensor}` of shape {shape:?}: no row {row} of length {length}")]
    NoSuchRow {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The index of the row.
        row: usize,
        /// The length of the buffer, in values.
        length: usize,
    },
    /// The name is not that of a known dtype.
    #[error("unknown dtype `{found}`; known are float32 (f32), float16 (f16), bfloat16 (bf16)")]
    UnknownDtype {
        /// The name given.
        found: String,
    },
    /// The checkpoint has no tokenizer.
    #[error("{} has no tokenizer; put a tokenizer.json there, or give and take token ids", path.display())]
    NoTokenizer {
        /// The directory, or the name of the model.
        path: PathBuf,
    },
    /// `tokenizer.json` does not describe a tokenizer that can be used.
    #[error("{} is not a usable tokenizer: {reason}", path.display())]
    BadTokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizer library's words.
        reason: String,
    },
    /// A text could not be turned into tokens.
    #[error("the tokenizer cannot encode the text: {reason}")]
    Encode {
        /// The tokenizer library's words.
        reason: String,
    },
    /// Tokens could not be turned into text.
    #[error("the tokenizer cannot decode token {token}: {reason}")]
    Decode {
        /// The last token of the piece that was decoded.
        token: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// The step has more rows than the device's buffers.
    #[error("a step of {rows} rows is more than the {limit} this engine was built for")]
    StepTooLarge {
        /// The number of rows in the step.
        rows: usize,
        /// The number of rows that the buffers have.
        limit: usize,
    },
    /// The most recent step did not have the row that was asked for.
    #[error("row {row} of a step of {rows} rows")]
    NoSuchTokenRow {
        /// The row.
        row: usize,
        /// The number of rows in the step.
        rows: usize,
    },
    /// The step's inputs do not fit the model or its KV pool.
    #[error("the step's inputs are inconsistent: {what}")]
    BadInputs {
        /// How they do not fit.
        what: String,
    },
    /// Somebody set the flag that [`Device::interrupt_on`](crate::Device::interrupt_on) was given, and the step ended in the middle.
    /// Nothing that it computed may be used.
    #[error("the step was interrupted before its end; nothing of it is used")]
    Interrupted,
    /// The device that was asked for cannot be made.
    #[error("{what}")]
    NoDevice {
        /// Why it cannot, and what to do.
        what: String,
    },
    /// A GPU, its driver or one of its libraries failed.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// The attention call was refused.
    #[error(transparent)]
    Attention(#[from] pagedraft_attention::AttentionError),
    /// There is not enough memory for weights or activations.
    #[error(transparent)]
    OutOfMemory(#[from] crate::cpu::memory::OutOfMemory),
}

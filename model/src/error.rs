//! What can go wrong between a model's files and its weights.

use std::path::PathBuf;

/// Everything that loading or running a model can refuse, with the file and the thing it is about.
///
/// `path` is the file, or the name the embedded model was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file could not be opened, mapped or read.
    #[error("cannot read {}: {source}{hint}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
        /// What to do about it; empty, or starting with "; ".
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
    /// A JSON file does not parse, or is not an object where it must be one.
    #[error("{} is not valid: {reason}", path.display())]
    BadJson {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A field that the model cannot do without is not there.
    #[error("{} has no field `{field}`; expected {expected}", path.display())]
    MissingField {
        /// The file.
        path: PathBuf,
        /// The field, dotted where it is nested.
        field: String,
        /// What should be there.
        expected: &'static str,
    },
    /// A field has a value that makes no sense.
    #[error("{}: `{field}` is {found}; expected {expected}", path.display())]
    BadField {
        /// The file.
        path: PathBuf,
        /// The field, dotted where it is nested.
        field: String,
        /// The value found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The architecture is none of those implemented.
    #[error("{}: architecture {found} is not one of those this engine runs ({known})", path.display())]
    UnknownArchitecture {
        /// The file.
        path: PathBuf,
        /// The architecture (or model type) the file names.
        found: String,
        /// The known ones, comma-separated.
        known: String,
    },
    /// The model asks for something that is not implemented; running it without would be wrong.
    #[error("{}: {feature} is not supported; {hint}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature, with the field and value that ask for it.
        feature: String,
        /// What is supported, or what to do.
        hint: String,
    },
    /// A `.safetensors` file is damaged or lies about itself.
    #[error("{} is damaged: {reason}", path.display())]
    BadSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the configuration demands is in no file.
    #[error("{} has no tensor `{tensor}`; {hint}", path.display())]
    MissingTensor {
        /// The file (or the directory, for a sharded model).
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why it is needed, or what to do.
        hint: String,
    },
    /// A tensor is there that the configuration says does not exist; ignoring it would be wrong.
    #[error("{} has the tensor `{tensor}`, which the configuration leaves no place for; {hint}", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The field that disagrees.
        hint: String,
    },
    /// A tensor has another shape than the configuration gives it.
    #[error("{}: tensor `{tensor}` has shape {found:?}; config.json makes it {expected:?}", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape by the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type that is not read here.
    #[error("{}: tensor `{tensor}` is stored as {found}; F32, F16 and BF16 are read (convert the checkpoint)", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// A row was asked for that the tensor does not have, or with a buffer of another length.
    #[error("tensor `{tensor}` of shape {shape:?}: no row {row} of length {length}")]
    NoSuchRow {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The row asked for.
        row: usize,
        /// The length of the buffer given.
        length: usize,
    },
    /// A dtype's name is not known.
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
    /// `tokenizer.json` does not describe a tokenizer.
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
        /// The last token of the piece.
        token: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// A step with more rows than the device's buffers have.
    #[error("a step of {rows} rows is more than the {limit} this engine was built for")]
    StepTooLarge {
        /// Rows asked for.
        rows: usize,
        /// Rows there are buffers for.
        limit: usize,
    },
    /// A row that the last step did not have.
    #[error("row {row} of a step of {rows} rows")]
    NoSuchTokenRow {
        /// The row.
        row: usize,
        /// Rows of the step.
        rows: usize,
    },
    /// Step inputs that do not fit the model or its KV pool.
    #[error("the step's inputs are inconsistent: {what}")]
    BadInputs {
        /// How.
        what: String,
    },
    /// A device that cannot be made as asked.
    #[error("{what}")]
    NoDevice {
        /// Why, and what to do.
        what: String,
    },
    /// A GPU, its driver or a library of it.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// The attention call.
    #[error(transparent)]
    Attention(#[from] pagedraft_attention::AttentionError),
    /// Memory for weights or activations.
    #[error(transparent)]
    OutOfMemory(#[from] crate::cpu::memory::OutOfMemory),
}

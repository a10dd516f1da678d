//! Writes GGUF files, for tests alone: whatever it is told, right or wrong.
#![allow(dead_code, reason = "each test program uses its part")]

/// The numbers of the types of tensors that tests write.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const BF16: u32 = 30;
pub const Q4_0: u32 = 2;
pub const Q4_1: u32 = 3;
pub const Q8_0: u32 = 8;
pub const Q4_K: u32 = 12;
pub const Q6_K: u32 = 14;

/// A value of the metadata.
#[derive(Clone, Debug)]
pub enum Value {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(Vec<u8>),
    Texts(Vec<Vec<u8>>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// Any other kind of value: its number and its bytes.
    Raw(u32, Vec<u8>),
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::U32(value)
    }
}
impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Value::F32(value)
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}
impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.as_bytes().to_vec())
    }
}
impl<S: AsRef<[u8]>> From<&[S]> for Value {
    fn from(values: &[S]) -> Self {
        Value::Texts(values.iter().map(|value| value.as_ref().to_vec()).collect())
    }
}

/// A tensor. `sizes` are in the file's order: the length of a row first.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub sizes: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
}

/// A file to be.
#[derive(Clone, Debug)]
pub struct Writer {
    pub version: u32,
    pub keys: Vec<(Vec<u8>, Value)>,
    pub tensors: Vec<Tensor>,
    /// The bytes between places where tensors begin. The key `general.alignment` is written by who wants another one.
    pub alignment: usize,
}

impl Writer {
    pub fn new() -> Self {
        Writer { version: 3, keys: Vec::new(), tensors: Vec::new(), alignment: 32 }
    }

    /// Adds a key, or gives it another value.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.remove(key);
        self.keys.push((key.as_bytes().to_vec(), value.into()));
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.keys.retain(|(own, _)| own != key.as_bytes());
        self
    }

    /// Adds a tensor of this shape, rows first.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: Vec<u8>) -> &mut Self {
        let sizes = shape.iter().rev().map(|&size| size as u64).collect();
        self.tensors.push(Tensor { name: name.as_bytes().to_vec(), sizes, kind, bytes });
        self
    }

    pub fn find(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name.as_bytes()).unwrap()
    }

    /// Where each tensor begins in the data.
    fn offsets(&self) -> Vec<u64> {
        let mut at = 0;
        let mut offsets = Vec::new();
        for tensor in &self.tensors {
            offsets.push(at as u64);
            at = (at + tensor.bytes.len()).next_multiple_of(self.alignment.max(1));
        }
        offsets
    }

    /// The header: everything before the data.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            value.write(&mut out);
        }
        for (tensor, offset) in self.tensors.iter().zip(self.offsets()) {
            text(&mut out, &tensor.name);
            out.extend((tensor.sizes.len() as u32).to_le_bytes());
            tensor.sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out
    }

    /// The whole file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        let start = out.len().next_multiple_of(self.alignment.max(1));
        for (tensor, offset) in self.tensors.iter().zip(self.offsets()) {
            out.resize(start + offset as usize, 0);
            out.extend(&tensor.bytes);
        }
        out.resize(out.len().next_multiple_of(self.alignment.max(1)), 0);
        out
    }
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        let list = |out: &mut Vec<u8>, kind: u32, count: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        };
        let one = |out: &mut Vec<u8>, kind: u32, bytes: &[u8]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Value::U32(value) => one(out, 4, &value.to_le_bytes()),
            Value::I32(value) => one(out, 5, &value.to_le_bytes()),
            Value::F32(value) => one(out, 6, &value.to_le_bytes()),
            Value::Bool(value) => one(out, 7, &[u8::from(*value)]),
            Value::Raw(kind, bytes) => one(out, *kind, bytes),
            Value::Text(bytes) => {
                one(out, 8, &[]);
                text(out, bytes);
            }
            Value::Texts(texts) => {
                list(out, 8, texts.len());
                texts.iter().for_each(|bytes| text(out, bytes));
            }
            Value::I32s(values) => {
                list(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Value::F32s(values) => {
                list(out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

/// The rows of q or k in the order in which llama.cpp's converter stores them for the architecture `llama`: it reshapes
/// `[heads * head_dim, ..]` to `[heads, 2, head_dim / 2, ..]` and swaps the two middle axes. A bias has rows of one value.
pub fn interleave(rows: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for head in rows.chunks(row_bytes * head_dim) {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                let row = half * (head_dim / 2) + pair;
                out.extend(&head[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    out
}

/// The name in a GGUF file of a tensor of a Hugging Face checkpoint.
pub fn name_of(name: &str) -> String {
    let swaps = [
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("lm_head.", "output."),
        ("model.layers.", "blk."),
        ("input_layernorm.", "attn_norm."),
        ("self_attn.q_proj.", "attn_q."),
        ("self_attn.k_proj.", "attn_k."),
        ("self_attn.v_proj.", "attn_v."),
        ("self_attn.o_proj.", "attn_output."),
        ("self_attn.q_norm.", "attn_q_norm."),
        ("self_attn.k_norm.", "attn_k_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("mlp.gate_proj.", "ffn_gate."),
        ("mlp.up_proj.", "ffn_up."),
        ("mlp.down_proj.", "ffn_down."),
    ];
    swaps.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

use crate::sampling::SamplingParams;

/// One draft token, and what it is judged by.
#[derive(Clone, Copy)]
pub(super) struct Draft<'a> {
    /// The draft token.
    pub token: u32,
    /// Its position in the sequence.
    pub position: u32,
    /// How the request draws its tokens.
    pub params: &'a SamplingParams,
    /// The target's logits at that position, `[vocab]`.
    pub logits: &'a [f32],
    /// The distribution that the draft was drawn from, `[vocab]`. `None` means that the draft had probability 1.
    pub q: Option<&'a [f64]>,
}

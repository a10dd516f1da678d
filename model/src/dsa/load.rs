//! The decoder's weights and buffers, brought onto a device.

use pagedraft_attention::sparse::KeepScores;
use pagedraft_block_manager::{KvGroup, PartKind};

use super::decoder::{Activations, FeedForward, Indexer, Layer, Linear, Sizes, SparseDecoder};
use super::groups;
use super::op::{HeadColumns, MatrixStack, Router};
use crate::checkpoint::{Checkpoint, DsaConfig, IndexKeys, ModelConfig, Tensor};
use crate::dense::StepLimits;
use crate::device::{Device, Precision};
use crate::error::ModelError;
use crate::layer_groups;

/// The tensors of one layer.
struct LayerTensors<'a> {
    checkpoint: &'a Checkpoint,
    shapes: Vec<(String, Vec<usize>)>,
    layer: usize,
}

impl<'a> LayerTensors<'a> {
    fn new(checkpoint: &'a Checkpoint, layer: usize) -> Self {
        Self { checkpoint, shapes: checkpoint.config().layer_tensors(layer), layer }
    }

    fn find(&self, module: &str) -> Result<Option<Tensor<'a>>, ModelError> {
        let name = format!("model.layers.{}.{module}", self.layer);
        let found = self.shapes.iter().find(|(tensor, _)| *tensor == name);
        found.map(|(name, shape)| self.checkpoint.tensor(name, shape)).transpose()
    }

    fn get(&self, module: &str) -> Result<Tensor<'a>, ModelError> {
        self.find(module)?.ok_or_else(|| ModelError::BadInputs {
            what: format!("layer {} of the configuration has no tensor {module}", self.layer),
        })
    }

    fn matrix<D: Device>(&self, device: &mut D, modules: &[&str]) -> Result<D::Buf, ModelError> {
        let tensors = modules.iter().map(|module| self.get(module)).collect::<Result<Vec<_>, _>>()?;
        device.matrix(&tensors)
    }

    fn vector<D: Device>(&self, device: &mut D, module: &str) -> Result<D::Buf, ModelError> {
        device.vector(self.get(module)?.to_vec_f32()?)
    }

    fn linear<D: Device>(&self, device: &mut D, module: &str) -> Result<Linear<D::Buf>, ModelError> {
        let bias = self.find(&format!("{module}.bias"))?;
        Ok(Linear {
            matrix: self.matrix(device, &[&format!("{module}.weight")])?,
            bias: bias.map(|bias| device.vector(bias.to_vec_f32()?)).transpose()?,
        })
    }
}

impl<B: Copy> SparseDecoder<B> {
    /// Loads every weight of `checkpoint` onto `device`, and makes the buffers of a step of `limits`. The model keeps the
    /// [one group](groups::kv_groups) of KV.
    ///
    /// # Errors
    ///
    /// A model of another kind; a tensor that is missing or has another shape than the configuration says; a device without the
    /// operations; not enough memory.
    pub fn load<D: Device<Buf = B>>(
        device: &mut D,
        checkpoint: &Checkpoint,
        limits: StepLimits,
    ) -> Result<Self, ModelError> {
        let groups = groups::kv_groups(sparse(checkpoint.config())?, |shape| device.token_bytes(shape))?;
        Self::load_grouped(device, checkpoint, limits, groups)
    }

    /// [`load`](Self::load) with other KV groups: the latents of each layer are in one part, and the keys of each indexer.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load); a layer that is in no group; a part of a kind that the model has no use for.
    pub fn load_grouped<D: Device<Buf = B>>(
        device: &mut D,
        checkpoint: &Checkpoint,
        limits: StepLimits,
        groups: Vec<KvGroup>,
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        let dsa = sparse(&config)?.clone();
        let shapes = layer_groups::shapes(&config, &groups)?;
        let mut layers = Vec::with_capacity(config.num_layers);
        for l in 0..config.num_layers {
            layers.push(layer(device, &LayerTensors::new(checkpoint, l), (&config, &dsa), &groups)?);
        }
        let (embed, head) = if config.tie_word_embeddings {
            device.table_and_matrix(&checkpoint.embedding()?)?
        } else {
            (device.table(&checkpoint.embedding()?)?, device.head(&checkpoint.lm_head()?)?)
        };
        Ok(Self {
            sizes: sizes(&config, &dsa, limits),
            shapes,
            indexer_layers: dsa.indexer_layers().collect(),
            groups,
            embed,
            layers,
            norm: device.vector(checkpoint.final_norm()?.to_vec_f32()?)?,
            head,
            rope: device.vector(rotations(&config, &dsa, limits.max_model_len))?,
            at: activations(device, &config, &dsa, limits)?,
            taps: Vec::new(),
            selections: Vec::new(),
            config,
        })
    }
}

/// What a model with sparse attention is made of.
fn sparse(config: &ModelConfig) -> Result<&DsaConfig, ModelError> {
    config.dsa.as_deref().ok_or_else(|| {
        let what = format!("a {} has no sparse attention over latents", config.architecture);
        ModelError::BadInputs { what }
    })
}

fn layer<D: Device>(
    device: &mut D,
    tensors: &LayerTensors<'_>,
    (config, dsa): (&ModelConfig, &DsaConfig),
    groups: &[KvGroup],
) -> Result<Layer<D::Buf>, ModelError> {
    let attention = |module: &str| format!("self_attn.{module}");
    // Columns of the keys' half are rows of its transpose, so that the whole matrix has to be at hand.
    let expanded = tensors.get("self_attn.kv_b_proj.weight")?.to_vec_f32()?;
    let (rank, nope, value) = (dsa.kv_lora_rank, dsa.qk_nope_head_dim, dsa.v_head_dim);
    let head_rows = nope + value;
    let heads = config.num_heads;
    let absorb = device.matrices(MatrixStack { count: heads, n: rank, k: nope }, &|head, row, out| {
        for (d, out) in out.iter_mut().enumerate() {
            *out = expanded[(head * head_rows + d) * rank + row];
        }
        Ok(())
    })?;
    let expand = device.matrices(MatrixStack { count: heads, n: value, k: rank }, &|head, row, out| {
        let at = (head * head_rows + nope + row) * rank;
        out.copy_from_slice(&expanded[at..at + rank]);
        Ok(())
    })?;
    drop(expanded);
    let indexer = if dsa.has_indexer(tensors.layer) {
        Some(Indexer {
            kv: layer_groups::place(groups, PartKind::IndexKeys, tensors.layer)?,
            q: tensors.matrix(device, &["self_attn.indexer.wq_b.weight"])?,
            key: tensors.matrix(device, &["self_attn.indexer.wk.weight"])?,
            key_norm: (
                tensors.vector(device, "self_attn.indexer.k_norm.weight")?,
                tensors.vector(device, "self_attn.indexer.k_norm.bias")?,
            ),
            weights: device.full_matrix(&tensors.get("self_attn.indexer.weights_proj.weight")?)?,
        })
    } else {
        None
    };
    Ok(Layer {
        kv: layer_groups::place(groups, PartKind::Latent, tensors.layer)?,
        input_norm: tensors.vector(device, "input_layernorm.weight")?,
        q_a: tensors.linear(device, &attention("q_a_proj"))?,
        q_a_norm: tensors.vector(device, "self_attn.q_a_layernorm.weight")?,
        q_b: tensors.matrix(device, &["self_attn.q_b_proj.weight"])?,
        kv_a: tensors.linear(device, &attention("kv_a_proj_with_mqa"))?,
        kv_a_norm: tensors.vector(device, "self_attn.kv_a_layernorm.weight")?,
        absorb,
        expand,
        o: tensors.linear(device, &attention("o_proj"))?,
        indexer,
        post_norm: tensors.vector(device, "post_attention_layernorm.weight")?,
        feed_forward: match dsa.has_experts(tensors.layer) {
            false => FeedForward::Dense {
                gate_up: tensors.matrix(device, &["mlp.gate_proj.weight", "mlp.up_proj.weight"])?,
                down: tensors.matrix(device, &["mlp.down_proj.weight"])?,
            },
            true => experts(device, tensors, config, dsa)?,
        },
    })
}

fn experts<D: Device>(
    device: &mut D,
    tensors: &LayerTensors<'_>,
    config: &ModelConfig,
    dsa: &DsaConfig,
) -> Result<FeedForward<D::Buf>, ModelError> {
    let e = &dsa.experts;
    let all = |name: &str| {
        let each = (0..e.count).map(|expert| tensors.get(&format!("mlp.experts.{expert}.{name}.weight")));
        each.collect::<Result<Vec<_>, _>>()
    };
    let (gate, up, down) = (all("gate_proj")?, all("up_proj")?, all("down_proj")?);
    let (count, hidden, inner) = (e.count, config.hidden_size, e.intermediate_size);
    let gate_up = MatrixStack { count, n: 2 * inner, k: hidden };
    let gate_up = device.matrices(gate_up, &|expert, row, out| match row.checked_sub(inner) {
        None => gate[expert].read_row(row, out),
        Some(row) => up[expert].read_row(row, out),
    })?;
    let stack = MatrixStack { count, n: hidden, k: inner };
    let down = device.matrices(stack, &|expert, row, out| down[expert].read_row(row, out))?;
    let shared = if e.shared > 0 {
        let both = ["mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"];
        let gate_up = tensors.matrix(device, &both)?;
        Some((gate_up, tensors.matrix(device, &["mlp.shared_experts.down_proj.weight"])?))
    } else {
        None
    };
    Ok(FeedForward::Experts {
        router: device.full_matrix(&tensors.get("mlp.gate.weight")?)?,
        bias: tensors.vector(device, "mlp.gate.e_score_correction_bias")?,
        gate_up,
        down,
        shared,
    })
}

fn sizes(config: &ModelConfig, dsa: &DsaConfig, limits: StepLimits) -> Sizes {
    let (heads, e) = (config.num_heads, &dsa.experts);
    let columns = |heads, stride, offset| HeadColumns { heads, stride, offset };
    let (index_heads, index_dim) = (dsa.index_heads, dsa.index_head_dim);
    Sizes {
        q_columns: columns(heads, dsa.qk_head_dim(), 0),
        rotated_columns: columns(heads, dsa.qk_head_dim(), dsa.qk_nope_head_dim),
        value_columns: columns(heads, dsa.kv_lora_rank, 0),
        index_columns: columns(index_heads, index_dim, 0),
        index_interleaved: dsa.index_rope_interleaved,
        index_scale: (1.0 / ((index_heads as f64).sqrt() * (index_dim as f64).sqrt())) as f32,
        index_hadamard: dsa.index_keys == IndexKeys::Fp8 { hadamard: true },
        // A sequence has no more keys.
        index_topk: dsa.index_topk.min(limits.max_model_len).max(1),
        rotated_values: dsa.qk_rope_head_dim,
        rank: dsa.kv_lora_rank,
        scale: dsa.softmax_scale,
        router: Router {
            experts: e.count,
            per_token: e.per_token,
            groups: e.groups,
            groups_kept: e.groups_kept,
            normalised: e.normalised,
            scale: e.scale,
        },
    }
}

fn activations<D: Device>(
    device: &mut D,
    config: &ModelConfig,
    dsa: &DsaConfig,
    limits: StepLimits,
) -> Result<Activations<D::Buf>, ModelError> {
    let (hidden, heads, e) = (config.hidden_size, config.num_heads, &dsa.experts);
    let has_experts = dsa.expert_layers.contains(&true);
    let (rows, logit_rows) = (limits.token_rows, limits.logit_rows);
    let index_topk = sizes(config, dsa, limits).index_topk;
    // What no layer needs takes no memory.
    let expert = |width: usize| if has_experts { width } else { 0 };
    let dense = if dsa.expert_layers.contains(&false) { config.intermediate_size } else { 0 };
    let shared = expert(e.shared * e.intermediate_size);
    let selection = device.choices(rows, index_topk, KeepScores::Nothing)?;
    let expert_choices = device.choices(rows, e.per_token, KeepScores::Nothing)?;
    let x = device.activations(rows, hidden, Precision::Full)?;
    let selected = device.activations(logit_rows, hidden, Precision::Full)?;
    let selected_normed = device.activations(logit_rows, hidden, Precision::Working)?;
    let logits = device.activations(logit_rows, config.vocab_size, Precision::Full)?;
    let mut working = |width: usize| device.activations(rows, width, Precision::Working);
    let attention = heads * dsa.kv_lora_rank;
    Ok(Activations {
        x,
        normed: working(hidden)?,
        q_a: working(dsa.q_lora_rank)?,
        q_a_normed: working(dsa.q_lora_rank)?,
        q: working(heads * dsa.qk_head_dim())?,
        latent: working(dsa.latent_width())?,
        index_q: working(dsa.index_heads * dsa.index_head_dim)?,
        index_key: working(dsa.index_head_dim)?,
        index_weights: working(dsa.index_heads)?,
        absorbed: working(attention)?,
        summed: working(attention)?,
        attended: working(heads * dsa.v_head_dim)?,
        dense: (working(2 * dense)?, working(dense)?),
        shared: (working(2 * shared)?, working(shared)?),
        router_logits: working(expert(e.count))?,
        expert_choices,
        expert_weights: working(expert(e.per_token))?,
        room: [
            working(expert(hidden))?,
            working(expert(2 * e.intermediate_size))?,
            working(expert(e.intermediate_size))?,
            working(expert(hidden))?,
        ],
        selected,
        selected_normed,
        logits,
        selection,
    })
}

/// The rotations of `[positions, qk_rope_head_dim]`: for each position p the cosines of its angles, then their sines. An
/// angle is the f32 product of position and inverse frequency, as the reference implementations have it.
fn rotations(config: &ModelConfig, dsa: &DsaConfig, positions: usize) -> Vec<f32> {
    let inv_freq = config.rope.inv_freq(dsa.qk_rope_head_dim);
    let scale = f64::from(dsa.rotation_scale);
    let mut table = Vec::with_capacity(positions * dsa.qk_rope_head_dim);
    for p in 0..positions {
        let angles = || inv_freq.iter().map(move |f| f64::from(p as f32 * f));
        table.extend(angles().map(|a| (a.cos() * scale) as f32));
        table.extend(angles().map(|a| (a.sin() * scale) as f32));
    }
    table
}

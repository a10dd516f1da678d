//! Sends weights to the GPU. All the CPU's cores round them to the GPU's dtype, a piece at a time.
//!
//! They are stored as in the checkpoint, row-major, for products and for look-ups alike. An embedding that is the head's
//! weight as well is therefore stored once.

use half::{bf16, f16};

use crate::checkpoint::{Dtype, Tensor};
use crate::error::ModelError;

/// The number of bytes that are rounded before they are sent.
const PIECE: usize = 64 << 20;

/// Rounds the rows of the tensors in `stacked`, each of shape `[.., k]`, one tensor after the other. Gives them to `send`
/// together with the byte at which they start.
///
/// # Errors
///
/// The tensors do not stack, or `send` fails.
pub(super) fn send_rows(
    stacked: &[Tensor<'_>],
    dtype: Dtype,
    mut send: impl FnMut(usize, &[u8]) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let k = stacked.first().map_or(0, Tensor::row_len);
    if let Some(other) = stacked.iter().find(|tensor| tensor.row_len() != k) {
        let what = format!("tensor {} has {} columns where {k} are stacked", other.name(), other.row_len());
        return Err(ModelError::BadInputs { what });
    }
    let row_bytes = k * dtype.size();
    let most = (PIECE / row_bytes.max(1)).max(1);
    let mut piece = Vec::new();
    let mut at = 0;
    for tensor in stacked {
        for first in (0..tensor.rows()).step_by(most) {
            let rows = most.min(tensor.rows() - first);
            piece.resize(rows * row_bytes, 0);
            round_rows(tensor, first, dtype, row_bytes, &mut piece)?;
            send(at, &piece)?;
            at += piece.len();
        }
    }
    Ok(())
}

fn round_rows(
    tensor: &Tensor<'_>,
    first: usize,
    dtype: Dtype,
    row_bytes: usize,
    out: &mut [u8],
) -> Result<(), ModelError> {
    if row_bytes == 0 {
        return Ok(());
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let rows = out.len() / row_bytes;
    let share = rows.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let work = |(i, part): (usize, &mut [u8])| -> Result<(), ModelError> {
            let mut row = vec![0.0; tensor.row_len()];
            for (r, bytes) in part.chunks_exact_mut(row_bytes).enumerate() {
                let number = first + i * share + r;
                match tensor.raw_row(number).filter(|_| tensor.dtype() == dtype) {
                    Some(stored) => bytes.copy_from_slice(stored),
                    None => {
                        tensor.read_row(number, &mut row)?;
                        round(&row, dtype, bytes);
                    }
                }
            }
            Ok(())
        };
        let parts = out.chunks_mut(share * row_bytes).enumerate();
        let running: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        running.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

fn round(row: &[f32], dtype: Dtype, out: &mut [u8]) {
    match dtype {
        Dtype::F32 => {
            for (four, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(row) {
                *four = value.to_le_bytes();
            }
        }
        Dtype::F16 => {
            for (two, &value) in out.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                *two = f16::from_f32(value).to_le_bytes();
            }
        }
        Dtype::Bf16 => {
            for (two, &value) in out.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                *two = bf16::from_f32(value).to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, ModelConfig, Part};

    const CONFIG: &[u8] = br#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#;

    #[test]
    fn rows_arrive_in_order_and_rounded() {
        let checkpoint = Checkpoint::dummy(ModelConfig::parse("c".as_ref(), CONFIG).unwrap(), 3);
        let stacked = [Part::Gate, Part::Up].map(|part| checkpoint.weight(0, part).unwrap());
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let mut bytes = Vec::new();
            send_rows(&stacked, dtype, |at, piece| {
                assert_eq!(at, bytes.len());
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
            let values: Vec<f32> = stacked.iter().flat_map(|t| t.to_vec_f32().unwrap()).collect();
            let widened: Vec<f32> = (bytes.as_chunks::<2>().0.iter())
                .map(|&two| match dtype {
                    Dtype::Bf16 => bf16::from_le_bytes(two).to_f32(),
                    _ => f16::from_le_bytes(two).to_f32(),
                })
                .collect();
            // Drawn weights can be represented exactly in both types.
            assert_eq!(widened, values);
        }
        let other = [checkpoint.weight(0, Part::Gate).unwrap(), checkpoint.weight(0, Part::Down).unwrap()];
        assert!(send_rows(&other, Dtype::Bf16, |_, _| Ok(())).is_err());
    }
}

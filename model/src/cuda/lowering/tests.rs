use pagedraft_attention::cuda::Element;
use pagedraft_block_manager::GroupId;

use super::*;

const ROWS: usize = 8;
const LOGIT_ROWS: usize = 3;
/// The numbers of heads, of key heads, and of values per head.
const HEADS: (usize, usize, usize) = (4, 2, 16);
const HIDDEN: usize = 24;
/// The number of bytes from one block to the next. Two layers leave some of them unused.
const STRIDE: usize = 5 * 1024;

fn buffer(number: usize) -> BufferId {
    BufferId::new(number)
}

/// Buffers 0 to 8 are the residual stream, its norm, qkv, q, the output of attention, a product's f32 output, a short such
/// output, the gates, and their product. Buffers 9 to 13 are a weight, an embedding, a norm's weight, the rotations, and
/// the weight of gate and up.
fn shapes() -> Vec<Shape> {
    let (heads, kv_heads, d) = HEADS;
    let (q, qkv) = (heads * d, (heads + 2 * kv_heads) * d);
    vec![
        Shape::Full { rows: ROWS, width: HIDDEN },
        Shape::Working { rows: ROWS, width: HIDDEN },
        Shape::Working { rows: ROWS, width: qkv },
        Shape::Working { rows: ROWS, width: q },
        Shape::Working { rows: ROWS, width: q },
        Shape::Full { rows: ROWS, width: 40 },
        Shape::Full { rows: LOGIT_ROWS, width: HIDDEN },
        Shape::Working { rows: ROWS, width: 80 },
        Shape::Working { rows: ROWS, width: 40 },
        Shape::Matrix { n: 40, k: HIDDEN },
        Shape::Matrix { n: 99, k: HIDDEN },
        Shape::Vector { len: HIDDEN },
        Shape::Vector { len: 64 * d },
        Shape::Matrix { n: 80, k: HIDDEN },
    ]
}

/// One of every operation with so many rows, and the greatest number of rows that it can have.
fn operations(rows: usize) -> Vec<(Op<BufferId>, usize)> {
    let b = buffer;
    let product = |matrix, out, into| Op::MatMul { x: b(1), matrix, bias: None, out, into, rows };
    vec![
        (Op::Embed { table: b(10), out: b(0), rows }, ROWS),
        (Op::RmsNorm { x: b(0), weight: b(11), out: b(1), eps: 1e-5, rows }, ROWS),
        (product(b(9), b(5), WriteMode::Add), ROWS),
        (product(b(13), b(7), WriteMode::Store), ROWS),
        (
            Op::RopeAndCache { qkv: b(2), qk_norm: None, rope: b(12), q: b(3), kv: KvRef::dense(1), rows },
            ROWS,
        ),
        (Op::Attention { q: b(3), out: b(4), kv: KvRef::dense(1), scale: 0.25, rows }, ROWS),
        (Op::SwiGlu { x: b(7), out: b(8), rows }, ROWS),
        (Op::Gather { x: b(0), out: b(6), rows }, LOGIT_ROWS),
        (Op::Copy { x: b(0), out: b(6), rows }, LOGIT_ROWS),
    ]
}

fn lowered(op: &Op<BufferId>, shapes: &[Shape], bound: usize) -> Result<Vec<Launch>, ModelError> {
    let (heads, kv_heads, d) = HEADS;
    let attention = AttentionShape::new(heads, kv_heads, d, 16, Element::Bf16, Element::Bf16).unwrap();
    let inputs = InputLayout::new(ROWS, 4, 16);
    let geometry = Geometry { attention, layers: 2, stride: STRIDE, multiprocessors: 3, inputs };
    let attention = AttentionLaunch { rows: 16, grid: 2 };
    let lowering = Lowering { geometry: &geometry, shapes, attention, bound, most_rows: ROWS };
    let mut launches = Vec::new();
    lowering.lower(op, &mut launches).map(|()| launches)
}

#[test]
fn a_step_of_more_rows_than_a_buffer_has_is_refused_with_both_numbers() {
    let most = operations(1).into_iter().map(|(_, most)| most);
    for (i, most) in most.enumerate() {
        let of = |rows: usize| lowered(&operations(rows)[i].0, &shapes(), rows.min(ROWS));
        assert_eq!(of(most).unwrap().len(), 1, "operation {i} at {most} rows");
        assert!(of(0).unwrap().is_empty());
        for rows in [most + 1, most + 1000] {
            match of(rows) {
                Err(ModelError::StepTooLarge { rows: asked, limit }) => {
                    assert_eq!((asked, limit), (rows, most), "operation {i}");
                }
                other => panic!("operation {i} at {rows} rows: {other:?}"),
            }
        }
    }
}

#[test]
fn the_scale_and_the_stride_are_those_of_the_operation_and_the_arena() {
    let (op, shapes) = (&operations(2)[5].0, shapes());
    let Op::Attention { q, out, kv, .. } = *op else { unreachable!() };
    let arguments = |scale| {
        let op = Op::Attention { q, out, kv, scale, rows: 2 };
        lowered(&op, &shapes, 2).unwrap().remove(0).arguments
    };
    assert!(arguments(0.25).contains(&F32(0.25)) && arguments(0.5).contains(&F32(0.5)));
    assert!(arguments(0.25).contains(&U64(STRIDE as u64)));
}

#[test]
fn rows_that_are_held_are_refused_by_name() {
    for op in [
        Op::Hold { x: buffer(0), kv: KvRef::dense(0), rows: 1 },
        Op::Fetch { x: buffer(0), kv: KvRef::dense(0), rows: 1 },
    ] {
        let said = lowered(&op, &shapes(), 1).unwrap_err().to_string();
        assert!(said.contains("rows of its residual stream") && said.contains("--device cpu"), "{said}");
    }
}

#[test]
fn attention_over_fewer_rows_than_were_bound_is_refused() {
    let op = &operations(2)[5].0;
    assert!(lowered(op, &shapes(), ROWS).is_ok());
    let mut short = shapes();
    short[4] = Shape::Working { rows: ROWS - 1, width: 64 };
    let refused = lowered(op, &short, ROWS);
    assert!(matches!(refused, Err(ModelError::StepTooLarge { rows: ROWS, limit: 7 })), "{refused:?}");
}

#[test]
fn buffers_that_do_not_go_together_are_refused() {
    for (i, (op, _)) in operations(2).into_iter().enumerate() {
        for narrow in 0..9 {
            let mut shapes = shapes();
            let (Shape::Full { width, .. } | Shape::Working { width, .. }) = &mut shapes[narrow] else {
                unreachable!()
            };
            *width += 8;
            let used = format!("{op:?}").contains(&format!("BufferId({narrow})"));
            assert_eq!(lowered(&op, &shapes, 2).is_err(), used, "operation {i}, buffer {narrow}");
        }
    }
    let (q, out) = (buffer(3), buffer(4));
    let attend = |kv| lowered(&Op::Attention { q, out, kv, scale: 0.25, rows: 1 }, &shapes(), 1);
    let beyond = attend(KvRef::dense(2)).unwrap_err();
    assert!(beyond.to_string().contains("layer: 2 }, and the KV cache has 2 layers"), "{beyond}");
    assert!(attend(KvRef { group: GroupId(1), ..KvRef::dense(0) }).is_err());
    assert!(attend(KvRef { part: 1, ..KvRef::dense(0) }).is_err());
    let foreign = lowered(&Op::Copy { x: buffer(14), out, rows: 1 }, &shapes(), 1);
    assert!(foreign.is_err());
}

//! A dense decoder of three layers that is cut behind the first: a model of two segments.
#![allow(dead_code, reason = "each test file takes what it needs")]

use pagedraft_block_manager::{GroupId, KvGroup, KvPart, LayerSet, PartKind};
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::dense::DenseDecoder;
use pagedraft_model::{Architecture, BufferId, KvRef, Op, PartShape};

/// Layers of the first segment.
pub const CUT: usize = 1;
/// Where rows of the residual stream wait between the segments.
pub const HELD: KvRef = KvRef { group: GroupId(2), part: 0, layer: CUT as u16 };

/// The dense decoder, cut behind layer `CUT`. Rows with a slot in group 2 are held behind the first segment, and fetched
/// before the second.
pub struct Cut(pub DenseDecoder<BufferId>);

impl Architecture<BufferId> for Cut {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }
    fn kv(&self) -> &[KvGroup] {
        self.0.kv()
    }
    fn shapes(&self) -> &[Vec<PartShape>] {
        self.0.shapes()
    }
    fn num_segments(&self) -> usize {
        2
    }
    fn segment(&self, index: usize, rows: usize, ops: &mut Vec<Op<BufferId>>) {
        let x = self.0.residual();
        if index == 0 {
            self.0.embed(rows, ops);
            self.0.layers(0..CUT, rows, ops);
            ops.push(Op::Hold { x, kv: HELD, rows });
        } else {
            ops.push(Op::Fetch { x, kv: HELD, rows });
            self.0.layers(CUT..self.0.num_layers(), rows, ops);
        }
    }
    fn head(&self, rows: usize, ops: &mut Vec<Op<BufferId>>) {
        self.0.head(rows, ops);
    }
    fn residual(&self) -> BufferId {
        self.0.residual()
    }
    fn logits(&self) -> BufferId {
        self.0.logits()
    }
    fn final_hidden(&self) -> BufferId {
        self.0.final_hidden()
    }
    fn taps(&self) -> &[BufferId] {
        self.0.taps()
    }
    fn set_taps(&mut self, taps: Vec<BufferId>) {
        self.0.set_taps(taps);
    }
}

/// The layers before the cut, those behind it (which take twice the bytes), and the rows of `hidden_size` that wait. A token takes
/// `bytes_per_token` bytes in each layer.
pub fn groups(hidden_size: usize, bytes_per_token: usize) -> Vec<KvGroup> {
    let group = |id: u8, name: &str, kind, layers, bytes_per_token| KvGroup {
        id: GroupId(id),
        name: name.to_owned(),
        parts: vec![KvPart { kind, layers, bytes_per_token, tiered: false }],
        ..KvGroup::dense(1, bytes_per_token)
    };
    let cut = CUT as u16;
    vec![
        group(0, "before", PartKind::Heads, LayerSet::range(0..cut), bytes_per_token),
        group(1, "behind", PartKind::Heads, LayerSet::range(cut..3), bytes_per_token),
        group(2, "held", PartKind::Residual, LayerSet::range(cut..cut + 1), 4 * hidden_size),
    ]
}

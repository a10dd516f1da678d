//! The inputs of a step, packed into one buffer that goes to the GPU in one copy.
//!
//! Every part that a kernel reads starts at a place that depends only on the device's limits, so that graphs can hold fixed
//! pointers. Only the part of the buffer that the step uses is copied. The buffer consists of words of 32 bits:
//!
//! ```text
//! tokens     [token rows]
//! positions  [token rows]
//! slots      [token rows] of 64 bits
//! num_items  [1]
//! items      [num_items][12]   the attention kernel's work: which queries, which keys
//! blocks     [..]              of all sequences; an item says where its sequence's begin, counted from the first word of all
//! ```
//!
//! For a graph, the inputs are padded with rows of token 0 at position 0 in slot -1, which belong to no item.

use pagedraft_attention::cuda::{AttentionPlan, AttentionShape};
use pagedraft_attention::metadata::{AttentionMetadata, PAD_SLOT};

use super::attention_work::AttentionWork;
use super::options::CudaOptions;
use crate::error::ModelError;
use crate::graph::GraphKey;
use crate::step_inputs::StepInputs;

/// Every part starts at a multiple of this many words, which are 128 bytes.
const LINE: usize = 32;
/// The number of words of an item.
const ITEM_WORDS: usize = AttentionShape::ITEM_WORDS;
/// The word of an item that says where its sequence's blocks begin.
const ITEM_TABLE: usize = 4;

/// Where the parts of the inputs lie, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputLayout {
    rows: usize,
    blocks_a_row: usize,
    items: usize,
}

impl InputLayout {
    /// The layout for steps of at most `rows` token rows and `items` items of attention, over sequences of at most
    /// `blocks_a_row` blocks.
    #[must_use]
    pub fn new(rows: usize, blocks_a_row: usize, items: usize) -> Self {
        Self { rows, blocks_a_row, items }
    }

    /// The layout for the steps of a device with these options.
    #[must_use]
    pub fn of(options: &CudaOptions, work: &AttentionWork) -> Self {
        let rows = options.token_rows;
        let blocks_a_row = options.max_model_len.div_ceil(options.block_size as usize);
        Self::new(rows, blocks_a_row, work.items_of_any(rows as u32) as usize)
    }

    /// The greatest number of token rows of a step.
    #[must_use]
    pub fn rows(self) -> usize {
        self.rows
    }

    fn part(self, number: usize) -> usize {
        number * self.rows.next_multiple_of(LINE)
    }

    /// The word at which the token ids start.
    #[must_use]
    pub fn tokens(self) -> usize {
        self.part(0)
    }

    /// The word at which the positions start.
    #[must_use]
    pub fn positions(self) -> usize {
        self.part(1)
    }

    /// The word at which the slots start. A slot takes two words.
    #[must_use]
    pub fn slots(self) -> usize {
        self.part(2)
    }

    /// The word that holds the number of items.
    #[must_use]
    pub fn num_items(self) -> usize {
        self.part(4)
    }

    /// The word at which the items start.
    #[must_use]
    pub fn items(self) -> usize {
        self.part(4) + LINE
    }

    /// The greatest number of words of all parts together.
    #[must_use]
    pub fn words(self) -> usize {
        self.items() + self.items * ITEM_WORDS + self.rows * self.blocks_a_row
    }
}

/// The size of what was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The number of words that are used, from the first on.
    pub words: usize,
    /// The number of items of attention.
    pub items: u32,
}

/// Packs the inputs of steps. Its buffers are kept from step to step.
#[derive(Debug)]
pub struct Packer {
    layout: InputLayout,
    plan: AttentionPlan,
    /// The blocks of the sequences, and where those of each metadata row begin.
    blocks: Vec<u32>,
    starts: Vec<u32>,
}

impl Packer {
    /// A packer for inputs that are laid out as `layout` says.
    #[must_use]
    pub fn new(layout: InputLayout) -> Self {
        Self { layout, plan: AttentionPlan::new(), blocks: Vec::new(), starts: Vec::new() }
    }

    /// Packs a step's inputs into `words`, padded to `key`. Attention is planned by `work` for rows of up to `longest`
    /// query tokens.
    ///
    /// # Errors
    ///
    /// The inputs contradict each other, are larger than the key or the layout allows, or name a block or slot outside the
    /// pool of (number of blocks, tokens per block).
    pub fn pack(
        &mut self,
        inputs: &StepInputs,
        key: Option<GraphKey>,
        (num_blocks, block_size): (u32, u32),
        (work, longest): (&AttentionWork, u32),
        words: &mut [u32],
    ) -> Result<Packed, ModelError> {
        let (layout, metadata) = (self.layout, inputs.metadata());
        let (tokens, sequences) = (inputs.tokens.len(), metadata.num_rows());
        let rows = key.map_or(tokens, |key| key.token_rows as usize);
        let most_sequences = key.map_or(layout.rows, |key| key.sequences as usize);
        let (positions, slots) = (inputs.positions.len(), metadata.slot_mapping.len());
        if positions != tokens || slots != tokens {
            return bad(format!("{tokens} tokens, {positions} positions, {slots} slots"));
        }
        if tokens > rows || sequences > most_sequences {
            return bad(format!("{tokens} token rows of {sequences} sequences do not fit {key:?}"));
        }
        if rows > layout.rows || words.len() < layout.words() {
            return Err(ModelError::StepTooLarge { rows, limit: layout.rows });
        }
        if metadata.num_tokens() > tokens {
            return bad(format!("{tokens} tokens, and metadata of {}", metadata.num_tokens()));
        }
        let most = i64::from(num_blocks) * i64::from(block_size);
        if let Some(slot) = metadata.slot_mapping.iter().find(|&&s| s != PAD_SLOT && !(0..most).contains(&s))
        {
            return bad(format!("slot {slot}, and the KV cache has {most}"));
        }
        fill(&mut words[layout.tokens()..], &inputs.tokens, rows);
        fill(&mut words[layout.positions()..], &inputs.positions, rows);
        let pads = std::iter::repeat_n(&PAD_SLOT, rows - tokens);
        let pairs = words[layout.slots()..].as_chunks_mut::<2>().0;
        for (pair, &slot) in pairs.iter_mut().zip(metadata.slot_mapping.iter().chain(pads)) {
            *pair = [slot as u32, (slot >> 32) as u32];
        }

        self.gather_blocks(metadata, block_size)?;
        self.plan.plan(work.shape(), work.options(longest), metadata, 0..sequences, &self.starts)?;
        let items = self.plan.items();
        if items.len() > layout.items {
            return bad(format!(
                "{} items of attention, and there is room for {}",
                items.len(),
                layout.items
            ));
        }
        words[layout.num_items()] = items.len() as u32;
        let blocks = layout.items() + items.len() * ITEM_WORDS;
        for (to, item) in words[layout.items()..].as_chunks_mut::<ITEM_WORDS>().0.iter_mut().zip(items) {
            *to = *item;
            to[ITEM_TABLE] += blocks as u32;
        }
        words[blocks..blocks + self.blocks.len()].copy_from_slice(&self.blocks);
        Ok(Packed { words: blocks + self.blocks.len(), items: items.len() as u32 })
    }

    /// Puts the blocks of every metadata row into `self.blocks`.
    fn gather_blocks(&mut self, metadata: &AttentionMetadata, block_size: u32) -> Result<(), ModelError> {
        let Self { layout, blocks, starts, .. } = self;
        blocks.clear();
        starts.clear();
        let mut last = 0;
        for (row, (table, &len)) in metadata.block_tables.iter().zip(&metadata.seq_lens).enumerate() {
            let needed = len.div_ceil(block_size) as usize;
            let Some(table) = table.get(..needed).filter(|_| needed <= layout.blocks_a_row) else {
                return bad(format!(
                    "metadata row {row} has {} blocks, its length needs {needed}",
                    table.len()
                ));
            };
            // Batch expansion writes several rows of one sequence, which share their blocks: each row begins with the
            // blocks of the row before.
            let before = &blocks[last..];
            let shared = !before.is_empty()
                && table.len() >= before.len()
                && before.iter().zip(table).all(|(&was, is)| was == is.0);
            let new = if shared { before.len() } else { 0 };
            if !shared {
                last = blocks.len();
            }
            blocks.extend(table[new..].iter().map(|block| block.0));
            starts.push(last as u32);
        }
        if starts.len() != metadata.num_rows() {
            return bad(format!(
                "{} rows, {} block tables",
                metadata.num_rows(),
                metadata.block_tables.len()
            ));
        }
        Ok(())
    }
}

/// `values`, followed by as many zeroes as are needed for a length of `len`.
fn fill(to: &mut [u32], values: &[u32], len: usize) {
    to[..values.len()].copy_from_slice(values);
    to[values.len()..len].fill(0);
}

fn bad<T>(what: String) -> Result<T, ModelError> {
    Err(ModelError::BadInputs { what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagedraft_attention::cuda::Element;
    use pagedraft_attention::{MaskKind, MetadataBuilder};
    use pagedraft_block_manager::BlockId;

    const POOL: (u32, u32) = (40, 16);

    fn work() -> AttentionWork {
        let shape = AttentionShape::new(4, 2, 16, 16, Element::Bf16, Element::Bf16).unwrap();
        AttentionWork::new(shape, 4, POOL.0, 128)
    }

    fn layout(rows: usize, blocks_a_row: usize) -> InputLayout {
        InputLayout::new(rows, blocks_a_row, work().items_of_any(rows as u32) as usize)
    }

    fn step(rows: &[(u32, u32, u32)]) -> StepInputs {
        let mut builder = MetadataBuilder::new(16).unwrap();
        let mut positions = Vec::new();
        for &(context, queries, first) in rows {
            let table: Vec<_> = (0..8).map(|b| BlockId(first + b)).collect();
            builder.push_row(context, queries, &table, MaskKind::Causal).unwrap();
            positions.extend(context..context + queries);
        }
        let tokens = (0..positions.len() as u32).map(|t| t + 100).collect();
        StepInputs::dense(tokens, positions, builder.finish().clone())
    }

    fn pack(
        layout: InputLayout,
        inputs: &StepInputs,
        key: Option<GraphKey>,
    ) -> Result<(Vec<u32>, Packed), ModelError> {
        let mut words = vec![0xdead_beef; layout.words()];
        let longest = key.map_or(inputs.metadata().max_query_len, |key| key.max_query_len);
        let packed = Packer::new(layout).pack(inputs, key, POOL, (&work(), longest), &mut words)?;
        Ok((words, packed))
    }

    fn slot(layout: InputLayout, words: &[u32], row: usize) -> i64 {
        let at = layout.slots() + 2 * row;
        (u64::from(words[at]) | (u64::from(words[at + 1]) << 32)) as i64
    }

    /// Reads the items as the attention kernel does: for each item its first token row, its number of queries, the number
    /// of keys that the first query sees, and the blocks that its queries read.
    fn items(layout: InputLayout, words: &[u32]) -> Vec<(u32, u32, u32, Vec<u32>)> {
        let items = &words[layout.items()..][..ITEM_WORDS * words[layout.num_items()] as usize];
        let mut found: Vec<_> = (items.as_chunks::<ITEM_WORDS>().0.iter())
            .map(|&[token, queries, visible, step, table, ..]| {
                let blocks = (visible + (queries - 1) * step).div_ceil(16) as usize;
                (token, queries, visible, words[table as usize..][..blocks].to_vec())
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn what_is_packed_is_what_kernels_find() {
        let layout = layout(12, 8);
        let inputs = step(&[(20, 5, 3), (0, 4, 20), (63, 1, 30), (0, 1, 11)]);
        let (words, packed) = pack(layout, &inputs, None).unwrap();
        assert_eq!(&words[layout.tokens()..][..11], inputs.tokens);
        assert_eq!(&words[layout.positions()..][..11], inputs.positions);
        let slots: Vec<_> = (0..11).map(|row| slot(layout, &words, row)).collect();
        assert_eq!(slots, inputs.metadata().slot_mapping);
        let expected = [
            (0, 5, 21, vec![3, 4]),
            (5, 4, 1, vec![20]),
            (9, 1, 64, vec![30, 31, 32, 33]),
            (10, 1, 1, vec![11]),
        ];
        assert_eq!(items(layout, &words), expected);
        assert_eq!(packed, Packed { words: layout.items() + 4 * ITEM_WORDS + 8, items: 4 });
        assert!(words[packed.words..].iter().all(|&word| word == 0xdead_beef));
    }

    #[test]
    fn padding_stands_for_nobody() {
        let layout = layout(16, 8);
        let key = GraphKey { token_rows: 8, max_query_len: 3, sequences: 4, segment: 0 };
        let (words, packed) = pack(layout, &step(&[(20, 3, 3), (7, 1, 9)]), Some(key)).unwrap();
        assert_eq!(words[layout.tokens()..][4..8], [0; 4]);
        assert_eq!(words[layout.positions()..][4..8], [0; 4]);
        assert!((4..8).all(|row| slot(layout, &words, row) == PAD_SLOT));
        assert_eq!(packed.items, 2);
        let (words, packed) = pack(layout, &StepInputs::default(), Some(key)).unwrap();
        assert_eq!((packed.items, words[layout.num_items()]), (0, 0));
        assert!((0..8).all(|row| slot(layout, &words, row) == PAD_SLOT));
    }

    #[test]
    fn rows_of_one_sequence_share_their_blocks() {
        let layout = layout(16, 8);
        let inputs = step(&[(30, 1, 3), (31, 1, 3), (32, 1, 3), (30, 1, 20), (5, 1, 20)]);
        let (words, packed) = pack(layout, &inputs, None).unwrap();
        let blocks: Vec<_> = items(layout, &words).into_iter().map(|item| item.3).collect();
        assert_eq!(blocks, [vec![3, 4], vec![3, 4], vec![3, 4, 5], vec![20, 21], vec![20]]);
        assert_eq!(packed.words, layout.items() + 5 * ITEM_WORDS + 3 + 2 + 1);
    }

    #[test]
    fn parts_do_not_overlap_at_the_greatest_step() {
        for rows in [1, 31, 32, 2048] {
            let l = layout(rows, 3);
            let parts = [
                (l.tokens(), rows),
                (l.positions(), rows),
                (l.slots(), 2 * rows),
                (l.num_items(), 1),
                (l.items(), l.items * ITEM_WORDS + 3 * rows),
                (l.words(), 0),
            ];
            assert!(parts.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{rows} rows: {parts:?}");
            assert!(parts[..5].iter().all(|part| part.0.is_multiple_of(LINE)));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let fits = |inputs: &StepInputs, key| pack(layout(4, 2), inputs, key).is_ok();
        assert!(fits(&step(&[(20, 4, 3)]), None));
        assert!(!fits(&step(&[(0, 5, 3)]), None), "more rows than there are");
        assert!(!fits(&step(&[(60, 1, 3)]), None), "more blocks than a row has");
        assert!(!fits(&step(&[(0, 1, 40)]), None), "a block outside the pool");
        let key = GraphKey { token_rows: 1, max_query_len: 2, sequences: 1, segment: 0 };
        assert!(!fits(&step(&[(0, 2, 3)]), Some(key)), "more rows than the key");
        let mut wrong = step(&[(0, 2, 3)]);
        wrong.positions.pop();
        assert!(!fits(&wrong, None), "a position is missing");
        let mut wrong = step(&[(0, 2, 3)]);
        wrong.metadata_mut().query_start_loc[1] = 3;
        assert!(!fits(&wrong, None), "a query token is missing");
    }
}

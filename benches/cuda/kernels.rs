//! Single kernels: looked at, and checked at the sizes of real models.

use pagedraft_model::Dtype;
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::cuda::kernels::MatmulTile;
use pagedraft_model::cuda::{
    Backend, CubinCache, CudaDevice, CudaOptions, Gpu, KvStorage, directories, modules,
};
use pagedraft_spec_decode::sampling::{Sampler, SamplingParams};

use crate::launches::{self, Finding, Random, attention, products, rows};
use crate::shapes::{LLAMA_8B, ONE_LAYER, QWEN3_0_6B, open, small};
use crate::steps;
use crate::table::Table;

/// Heads, key heads and values a head, and the types of a layer whose attention is checked.
type Layer = (usize, usize, usize, Dtype, KvStorage);

/// Those of Llama-3.1-8B, of it with an 8-bit KV cache, of Qwen3-0.6B, and of Qwen2.5-0.5B.
const LAYERS: [Layer; 4] = [
    (32, 8, 128, Dtype::Bf16, KvStorage::Model),
    (32, 8, 128, Dtype::Bf16, KvStorage::Fp8),
    (16, 8, 128, Dtype::F16, KvStorage::Model),
    (14, 2, 64, Dtype::Bf16, KvStorage::Model),
];

fn config((heads, kv_heads, dim, ..): Layer) -> ModelConfig {
    let text = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
            "head_dim": {dim}, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": true}}"#
    );
    ModelConfig::parse("config.json".as_ref(), text.as_bytes()).expect("a configuration")
}

fn options((_, _, _, dtype, kv): Layer) -> CudaOptions {
    CudaOptions {
        dtype,
        kv,
        block_size: 16,
        token_rows: 256,
        logit_rows: 16,
        max_model_len: 9216,
        deterministic: true,
        overlap: false,
    }
}

/// Compiles every kernel that the bench and the program with the embedded models run on a GPU of this architecture.
pub fn compile(arch: &str) {
    let start = std::time::Instant::now();
    let cache = CubinCache::of_user();
    let of = |config: &ModelConfig, dtype, kv| {
        let options = CudaOptions { dtype, kv, ..options(LAYERS[0]) };
        modules(&cache, arch, &options, config).expect("kernels").len()
    };
    let mut count = 0;
    for shape in [&QWEN3_0_6B, &LLAMA_8B, &ONE_LAYER] {
        count += of(&shape.config(), Dtype::Bf16, KvStorage::Model);
    }
    for text in
        [include_str!("../../assets/target/config.json"), include_str!("../../assets/draft/config.json")]
    {
        let config = ModelConfig::parse("config.json".as_ref(), text.as_bytes()).expect("a configuration");
        count += of(&config, Dtype::Bf16, KvStorage::Model);
    }
    for layer in LAYERS {
        count += of(&config(layer), layer.3, layer.4);
    }
    for model in 0..steps::CONFIGS.len() {
        let config = steps::checkpoint(model).config().clone();
        for (dtype, kv) in
            [(Dtype::Bf16, KvStorage::Model), (Dtype::F16, KvStorage::Model), (Dtype::Bf16, KvStorage::Fp8)]
        {
            count += of(&config, dtype, kv);
        }
    }
    println!("{count} modules of kernels are there for {arch}, after {:.1} s", start.elapsed().as_secs_f64());
}

/// What the GPU, its driver and its compiler are, and what became of each kernel.
pub fn probe(table: &mut Table) {
    let gpu = Gpu::open().expect("a GPU");
    let (free, total) = gpu.memory().expect("its memory");
    let (major, minor) = gpu.nvrtc_version();
    println!("{}, {}, {} multiprocessors", gpu.name(), gpu.arch(), gpu.multiprocessors());
    println!(
        "memory: {free} bytes free of {total}; NVRTC {major}.{minor}; libraries are looked for in {:?}",
        directories()
    );
    drop(gpu);
    for layer in LAYERS {
        let start = std::time::Instant::now();
        let mut device = open(&config(layer), &options(layer), 16);
        println!("{layer:?}: kernels loaded in {:.2} s", start.elapsed().as_secs_f64());
        let shape = device.geometry().attention;
        let attention = [("attention_16", 16), ("attention_32", 32), ("attention_64", 64)]
            .map(|(kernel, rows)| (kernel, 128, shape.shared_bytes(rows), Some(shape.blocks_at_once(rows))));
        let products = MatmulTile::ALL.map(|tile| (tile.kernel, tile.threads, tile.shared_bytes(), None));
        let others = [("rope_cache", 128, 0, None), ("sample", 1024, 0, None), ("argmax", 256, 0, None)];
        let mut wrong = Vec::new();
        for (kernel, threads, shared, wanted) in attention.into_iter().chain(products).chain(others) {
            match device.backend().kernel_facts(kernel, threads, shared) {
                Ok(facts) => {
                    println!("  {kernel:<18} {facts:?}");
                    if wanted.is_some_and(|wanted| wanted != facts.blocks_at_once) {
                        wrong.push(format!(
                            "{kernel} runs {} at once, and plans take {wanted:?}",
                            facts.blocks_at_once
                        ));
                    }
                }
                Err(why) => println!("  {kernel:<18} {why}"),
            }
        }
        wrong.iter().for_each(|why| println!("  NOTE {why}"));
        table.check(&format!("probe: kernels of {layer:?} load"), true);
    }
}

fn put(table: &mut Table, findings: Vec<Finding>) {
    for (name, found) in findings {
        if let Err(why) = &found {
            println!("WRONG {name}: {why}");
        }
        table.check(&name, found.is_ok());
    }
}

/// Row kernels and choices.
pub fn rows(table: &mut Table) {
    for layer in [LAYERS[0], LAYERS[2]] {
        let mut device = open(&config(layer), &options(layer), 16);
        let widths: &[usize] = if small() { &[72] } else { &[1024, 4096, 14336] };
        for &width in widths {
            put(table, rows::check(device.backend(), layer.3, 5, width));
        }
    }
    let mut device = open(&config(LAYERS[0]), &options(LAYERS[0]), 16);
    let vocabs: &[usize] = if small() { &[1000] } else { &[128_256, 151_936] };
    for &vocab in vocabs {
        put(table, sampling(device.backend(), vocab));
    }
}

/// Matrix products.
pub fn products(table: &mut Table) {
    let sizes = |weights| products::Sizes {
        weights,
        rows: if small() { 70 } else { 1100 },
        times: if small() { 1 } else { 300 },
    };
    let mut of = |layer: Layer, weights| {
        let mut device = open(&config(layer), &options(layer), 16);
        put(table, products::check(device.backend(), layer.3, sizes(weights)));
    };
    if small() {
        of(LAYERS[0], &[(72, 520)]);
        return;
    }
    of(LAYERS[0], &[(4096, 4096), (1024, 3072), (6144, 1024), (4096, 14336), (2052, 200)]);
    of(LAYERS[2], &[(4096, 4096), (132, 776)]);
}

/// Attention.
pub fn attention(table: &mut Table) {
    for layer in LAYERS {
        let (config, options) = (config(layer), options(layer));
        let sizes = if small() {
            attention::Sizes { lengths: &[300, 24], num_blocks: 64, times: 1 }
        } else {
            attention::Sizes { lengths: &[9000, 24, 257, 1500, 4001], num_blocks: 1000, times: 100 }
        };
        let mut device: CudaDevice = open(&config, &options, sizes.num_blocks);
        put(table, attention::check(&mut device, &config, &options, sizes));
    }
}

/// Choices out of whole vocabularies are the CPU's.
fn sampling<B: Backend>(b: &mut B, vocab: usize) -> Vec<Finding> {
    const NO_TOKEN: u32 = u32::MAX;
    let mut random = Random(11);
    let (mut logits, mut ways) = (Vec::new(), Vec::new());
    for row in 0..16u32 {
        let mut values: Vec<f32> = (0..vocab).map(|_| (random.value() + random.value()) * 6.0).collect();
        if row % 3 == 0 {
            // Many equals.
            values.iter_mut().for_each(|value| *value = (*value * 4.0).round() / 4.0);
        }
        let at = random.below(vocab);
        match row {
            5 => values[at] = f32::NAN,
            6 => values[at] = f32::INFINITY,
            7 => values.fill(f32::NEG_INFINITY),
            8 => values.fill(-0.0),
            _ => {}
        }
        logits.extend(values);
        let pick = |random: &mut Random, of: &[f32]| of[random.below(of.len())];
        ways.push((
            SamplingParams {
                temperature: pick(&mut random, &[0.0, 0.3, 1.0, 1.0, 2.5]),
                top_k: [None, Some(50), Some(1), Some(vocab as u32 - 1)][random.below(4)],
                top_p: pick(&mut random, &[1.0, 0.95, 0.5, 0.999_999_9]),
                min_p: pick(&mut random, &[0.0, 0.0, 0.02]),
                seed: random.next(),
                sample: row % 3,
                ..SamplingParams::default()
            },
            random.below(100_000) as u32,
        ));
    }
    let rows = ways.len();
    let cpu = |params: &SamplingParams, row: usize, position: u32| {
        Sampler::default().choose(&logits[row * vocab..][..vocab], params, position).unwrap_or(NO_TOKEN)
    };
    let logits_at = launches::put_floats(b, &logits);
    let chosen = launches::space(b, 4 * rows);
    let compare = |got: &[u32], want: &[u32]| match (0..rows).find(|&row| got[row] != want[row]) {
        None => Ok(()),
        Some(row) => {
            let wrong = (0..rows).filter(|&row| got[row] != want[row]).count();
            let logit =
                |token: u32| logits.get(row * vocab + token as usize).filter(|_| token < vocab as u32);
            Err(format!(
                "{wrong} of {rows} rows; row {row}, {:?}: token {} ({:?}) where {} ({:?}) goes",
                ways[row],
                got[row],
                logit(got[row]),
                want[row],
                logit(want[row])
            ))
        }
    };

    let (best, arrived) = (launches::space(b, 8 * rows), launches::space(b, 4 * rows));
    launches::poison(b, chosen, 4 * rows);
    let arguments = [logits_at, best, arrived, chosen, vocab as u64];
    let want: Vec<u32> = (0..rows).map(|row| cpu(&SamplingParams::greedy(), row, 0)).collect();
    // The blocks of a row meet in any order, so one run proves little.
    let greedy = (0..if small() { 1 } else { 100 }).try_for_each(|_| {
        launches::launch(b, "argmax", [rows as u32, 8, 1], (256, 0), &arguments);
        compare(&launches::words(b, chosen, rows), &want)
    });

    let column = |b: &mut B, of: &dyn Fn(&SamplingParams) -> u32| {
        launches::put_words(b, &ways.iter().map(|way| of(&way.0)).collect::<Vec<_>>())
    };
    let seeds: Vec<u32> =
        ways.iter().flat_map(|way| [way.0.seed as u32, (way.0.seed >> 32) as u32]).collect();
    let positions: Vec<u32> = ways.iter().map(|way| way.1).collect();
    let arguments = [
        logits_at,
        column(b, &|p| p.temperature.to_bits()),
        column(b, &|p| p.top_k.unwrap_or(0)),
        column(b, &|p| p.top_p.to_bits()),
        column(b, &|p| p.min_p.to_bits()),
        launches::put_words(b, &seeds),
        column(b, &|p| p.sample),
        launches::put_words(b, &positions),
        chosen,
        vocab as u64,
    ];
    launches::poison(b, chosen, 4 * rows);
    launches::launch(b, "sample", [rows as u32, 1, 1], (1024, 0), &arguments);
    let want: Vec<u32> =
        ways.iter().enumerate().map(|(row, (params, position))| cpu(params, row, *position)).collect();
    let drawn = compare(&launches::words(b, chosen, rows), &want);
    vec![
        (format!("argmax of {vocab} logits is the CPU's"), greedy),
        (format!("draws from {vocab} logits are the CPU's"), drawn),
    ]
}

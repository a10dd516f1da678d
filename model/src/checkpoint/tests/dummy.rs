//! Weights drawn from a seed.

use super::*;

fn dummy(seed: u64) -> Checkpoint {
    let changes = json!({"hidden_size": 66, "intermediate_size": 130, "num_attention_heads": 3,
        "num_key_value_heads": 3});
    Checkpoint::dummy(parse(&tiny_config(changes)).unwrap(), seed)
}

#[test]
fn dummy_weights_depend_on_seed_name_and_place_only() {
    let (one, again, other) = (dummy(7), dummy(7), dummy(8));
    let of = |checkpoint: &Checkpoint, layer, part| {
        let tensor = checkpoint.weight(layer, part).unwrap();
        tensor.to_vec_f32().unwrap()
    };
    let gate = of(&one, 0, Part::Gate);
    assert_eq!(gate, of(&again, 0, Part::Gate));
    assert_ne!(gate, of(&other, 0, Part::Gate));
    assert_ne!(gate, of(&one, 1, Part::Gate));
    assert_ne!(gate, of(&one, 0, Part::Up));
    let mut row = [0.0; 66];
    one.weight(0, Part::Gate).unwrap().read_row(77, &mut row).unwrap();
    assert_eq!(row, gate[77 * 66..][..66]);
    assert!(one.is_dummy());
}

#[test]
fn dummy_weights_are_small_centred_and_exact_in_sixteen_bits() {
    let checkpoint = dummy(1);
    let down = checkpoint.weight(1, Part::Down).unwrap();
    assert!(down.raw().is_none() && down.raw_row(0).is_none());
    let values = down.to_vec_f32().unwrap();
    let count = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / count;
    assert!(mean.abs() < 0.002, "mean {mean}");
    assert!((square.sqrt() - 0.0255).abs() < 0.002, "deviation {}", square.sqrt());
    for &value in &values {
        assert_eq!(half::bf16::from_f32(value).to_f32(), value);
        assert_eq!(half::f16::from_f32(value).to_f32(), value);
    }
}

#[test]
fn dummy_norms_are_one_and_ties_hold() {
    let checkpoint = dummy(1);
    for norm in [
        checkpoint.final_norm().unwrap(),
        checkpoint.weight(0, Part::InputNorm).unwrap(),
        checkpoint.weight(1, Part::PostAttentionNorm).unwrap(),
    ] {
        assert!(norm.to_vec_f32().unwrap().iter().all(|&value| value == 1.0));
    }
    let config = tiny_config(json!({"tie_word_embeddings": true}));
    let tied = Checkpoint::dummy(parse(&config).unwrap(), 3);
    let embedding = tied.embedding().unwrap().to_vec_f32().unwrap();
    assert_eq!(embedding, tied.lm_head().unwrap().to_vec_f32().unwrap());
}

#[test]
fn a_dummy_directory_needs_only_its_config() {
    let dir = Scratch::new();
    dir.write("config.json", tiny_config(json!({})).to_string().as_bytes());
    let checkpoint = Checkpoint::open_dummy(&dir.0, 5).unwrap();
    assert_eq!(checkpoint.weight(0, Part::Q).unwrap().shape(), [8, 8]);
    assert!(complaint(checkpoint.tokenizer()).contains("tokenizer.json"));
}

#[test]
fn a_row_of_dummy_weights_is_pinned() {
    // Speed runs of different machines and revisions must mean the same model.
    let checkpoint = dummy(42);
    let mut row = [0.0; 66];
    let tensor = checkpoint.weight(0, Part::Q).unwrap();
    tensor.read_row(1, &mut row).unwrap();
    let units: Vec<i32> = row[..6].iter().map(|v| (v * 4096.0) as i32).collect();
    assert_eq!(units, [-194, 175, -41, 37, -194, 108]);
}

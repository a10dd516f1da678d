//! What a request asks for when its prompt is to be pruned.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use crate::error::{Context, Result, bail, ensure};

/// How a pruned prompt's tokens are numbered behind a prune point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// Every token keeps its position in the prompt.
    #[default]
    Original,
    /// The tokens that are kept are numbered 0, 1, 2, .. anew for the layers that follow.
    Compact,
}

/// What `keep_ratio` is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PruneMode {
    /// The tokens that reach the layer.
    #[default]
    PerLayer,
    /// The prompt.
    Prompt,
}

/// Who scores the tokens that need not stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneScorer {
    /// A trained module behind each layer looks at the residual stream.
    #[default]
    Learned,
    /// The attention that the prompt's last tokens pay, in a dense model.
    LastWindow,
    /// The attention of the draft model.
    Draft,
    /// The scores that the indexer of a model with sparse attention gives for the prompt's last tokens.
    Indexer,
    /// Chance: a fixed function of position and layer.
    Random,
    /// The tokens nearest to either end of the prompt stay.
    FirstLast,
    /// Somebody who knows the answer, and what it attends to in a dense model.
    Oracle,
}

impl PruneScorer {
    /// Why a model whose attention is sparse or is not cannot be pruned by this scorer, if it cannot.
    #[must_use]
    pub fn refused_by(self, sparse: bool) -> Option<&'static str> {
        match (self, sparse) {
            (Self::LastWindow | Self::Oracle, true) => Some(
                "follows the attention to every token, and the model's attention is sparse: it weighs only the keys that its indexers choose; take indexer, or another scorer",
            ),
            (Self::Indexer, false) => Some(
                "reads what an indexer scores, and the model has none, because its attention is not sparse: take another scorer",
            ),
            _ => None,
        }
    }
}

impl FromStr for PruneScorer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        serde_json::from_value(name.into()).map_err(|error| error.to_string())
    }
}

impl fmt::Display for PruneScorer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Learned => "learned",
            Self::LastWindow => "last-window",
            Self::Draft => "draft",
            Self::Indexer => "indexer",
            Self::Random => "random",
            Self::FirstLast => "first-last",
            Self::Oracle => "oracle",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Ratios {
    One(f64),
    Each(Vec<f64>),
}

/// The file's fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    layers: Vec<u16>,
    keep_ratio: Ratios,
    #[serde(default)]
    mode: PruneMode,
    #[serde(default = "four")]
    min_head_tokens: u32,
    #[serde(default = "a_tenth")]
    min_tail_ratio: f64,
    #[serde(default = "sixteen")]
    min_tail_tokens: u32,
    #[serde(default)]
    positions: Positions,
    #[serde(default)]
    scorer: PruneScorer,
    modules: Option<PathBuf>,
    #[serde(default)]
    protect: Vec<(u32, u32)>,
}

fn four() -> u32 {
    4
}

fn sixteen() -> u32 {
    16
}

fn a_tenth() -> f64 {
    0.1
}

/// How a prompt is pruned.
#[derive(Clone, Debug, PartialEq)]
pub struct PruneSpec {
    /// The layers behind which tokens are dropped, ascending, and the share of the tokens that each keeps.
    pub layers: Vec<(u16, f64)>,
    /// What the shares are of.
    pub mode: PruneMode,
    /// The first so many tokens always stay.
    pub min_head_tokens: u32,
    /// The last tokens always stay: this share of those that reach the layer.
    pub min_tail_ratio: f64,
    /// The last tokens always stay: at least so many.
    pub min_tail_tokens: u32,
    /// How tokens are numbered behind a prune point.
    pub positions: Positions,
    /// Who scores the others.
    pub scorer: PruneScorer,
    /// The file of trained modules.
    pub modules: Option<PathBuf>,
    /// Ranges of prompt positions that always stay.
    pub protect: Vec<(u32, u32)>,
}

impl PruneSpec {
    /// Reads a spec file.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is not a spec. The error names the file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read the prune spec {}", path.display()))?;
        let value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::from_json(value, folder).with_context(|| format!("{} is not a prune spec", path.display()))
    }

    /// A spec from its JSON. Its modules lie relative to `folder`.
    ///
    /// # Errors
    ///
    /// A field is missing, unknown, or out of range.
    pub fn from_json(value: serde_json::Value, folder: &Path) -> Result<Self> {
        let fields: Fields = serde_json::from_value(value)?;
        ensure!(
            !fields.layers.is_empty(),
            "layers is empty: name the layers behind which tokens are dropped"
        );
        ensure!(
            fields.layers.is_sorted_by(|a, b| a < b),
            "layers {:?} do not ascend: name each layer once, in ascending order",
            fields.layers
        );
        let ratios = match fields.keep_ratio {
            Ratios::One(ratio) => vec![ratio; fields.layers.len()],
            Ratios::Each(ratios) => ratios,
        };
        ensure!(
            ratios.len() == fields.layers.len(),
            "keep_ratio has {} numbers for {} layers: give one for each layer, or a single one",
            ratios.len(),
            fields.layers.len()
        );
        if let Some(ratio) = ratios.iter().find(|&&ratio| !(ratio > 0.0 && ratio <= 1.0)) {
            bail!("keep_ratio {ratio} is out of range: it is more than 0 and at most 1");
        }
        ensure!(
            (0.0..=1.0).contains(&fields.min_tail_ratio),
            "min_tail_ratio {} is out of range: it is from 0 to 1",
            fields.min_tail_ratio
        );
        ensure!(
            fields.min_tail_tokens > 0,
            "min_tail_tokens is 0, but the prompt's last token always stays: give 1 or more"
        );
        if let Some((from, to)) = fields.protect.iter().find(|(from, to)| from >= to) {
            bail!(
                "protect has the range [{from}, {to}], which holds no position: the second number is the greater one"
            );
        }
        ensure!(
            fields.scorer != PruneScorer::Learned || fields.modules.is_some(),
            "scorer is learned, and modules names no file: name the .safetensors of the trained modules"
        );
        Ok(Self {
            layers: fields.layers.into_iter().zip(ratios).collect(),
            mode: fields.mode,
            min_head_tokens: fields.min_head_tokens,
            min_tail_ratio: fields.min_tail_ratio,
            min_tail_tokens: fields.min_tail_tokens,
            positions: fields.positions,
            scorer: fields.scorer,
            modules: fields.modules.map(|modules| folder.join(modules)),
            protect: fields.protect,
        })
    }
}

/// A spec by name, whose layers depend on the model's depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// 90 % behind each of 8 layers.
    Keep09,
    /// 80 % behind each of 8 layers.
    Keep08,
    /// 70 % behind each of 8 layers.
    Keep07,
    /// 90 % behind each of 10 layers.
    Sdtp,
}

impl FromStr for Preset {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "keep09" => Self::Keep09,
            "keep08" => Self::Keep08,
            "keep07" => Self::Keep07,
            "sdtp" => Self::Sdtp,
            _ => return Err(()),
        })
    }
}

impl Preset {
    /// The layers behind which tokens are dropped in a model of `num_layers` layers, and the share that each keeps.
    #[must_use]
    pub fn layers(self, num_layers: u16) -> Vec<(u16, f64)> {
        let (depth, count, ratio) = match self {
            Self::Keep09 => (28, 8, 0.9),
            Self::Keep08 => (28, 8, 0.8),
            Self::Keep07 => (28, 8, 0.7),
            Self::Sdtp => (32, 10, 0.9),
        };
        let mut layers: Vec<u16> = (0..count).map(|i| (4 + 3 * i) * num_layers / depth).collect();
        layers.dedup();
        layers.retain(|&layer| layer + 1 < num_layers);
        layers.into_iter().map(|layer| (layer, ratio)).collect()
    }
}

impl Preset {
    /// The preset for a model of `num_layers` layers whose modules lie in this file.
    ///
    /// # Errors
    ///
    /// The model has too few layers.
    pub fn spec(self, num_layers: u16, modules: &Path) -> Result<PruneSpec> {
        let (layers, ratios): (Vec<u16>, Vec<f64>) = self.layers(num_layers).into_iter().unzip();
        let json = serde_json::json!({"layers": layers, "keep_ratio": ratios, "modules": modules});
        PruneSpec::from_json(json, Path::new(""))
    }
}

/// What a flag or a request names: a spec, or a preset.
#[derive(Clone, Debug, PartialEq)]
pub enum PruneChoice {
    /// A spec.
    Spec(PruneSpec),
    /// A preset.
    Preset(Preset),
}

impl PruneChoice {
    /// A preset by its name, otherwise the spec in this file.
    ///
    /// # Errors
    ///
    /// Those of [`PruneSpec::read`].
    pub fn named(name: &str) -> Result<Self> {
        match name.parse() {
            Ok(preset) => Ok(Self::Preset(preset)),
            Err(()) => PruneSpec::read(Path::new(name)).map(Self::Spec),
        }
    }

    /// The layers behind which tokens are dropped in a model of `num_layers` layers, and the share that each keeps.
    #[must_use]
    pub fn layers(&self, num_layers: u16) -> Vec<(u16, f64)> {
        match self {
            Self::Spec(spec) => spec.layers.clone(),
            Self::Preset(preset) => preset.layers(num_layers),
        }
    }

    /// The spec in a model of `num_layers` layers. That of a preset names no modules.
    #[must_use]
    pub fn spec(&self, num_layers: u16) -> PruneSpec {
        match self {
            Self::Spec(spec) => spec.clone(),
            Self::Preset(preset) => PruneSpec {
                layers: preset.layers(num_layers),
                mode: PruneMode::default(),
                min_head_tokens: four(),
                min_tail_ratio: a_tenth(),
                min_tail_tokens: sixteen(),
                positions: Positions::default(),
                scorer: PruneScorer::default(),
                modules: None,
                protect: Vec::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_lie_at_the_same_depths_of_every_model_and_small_models_have_fewer() {
        let layers =
            |preset: Preset, n| preset.layers(n).into_iter().map(|(layer, _)| layer).collect::<Vec<_>>();
        assert_eq!(layers(Preset::Keep07, 28), [4, 7, 10, 13, 16, 19, 22, 25]);
        assert_eq!(layers(Preset::Sdtp, 32), [4, 7, 10, 13, 16, 19, 22, 25, 28]);
        assert_eq!(layers(Preset::Keep09, 8), [1, 2, 3, 4, 5, 6]);
        assert_eq!(layers(Preset::Keep09, 1), [] as [u16; 0]);
    }

    #[test]
    fn a_bad_spec_is_refused_with_the_field_and_what_is_allowed() {
        for (json, says) in [
            (r#"{"layers": [], "keep_ratio": 0.5, "scorer": "random"}"#, "layers is empty"),
            (r#"{"layers": [3, 1], "keep_ratio": 0.5, "scorer": "random"}"#, "do not ascend"),
            (r#"{"layers": [1, 1], "keep_ratio": 0.5, "scorer": "random"}"#, "do not ascend"),
            (r#"{"layers": [1], "keep_ratio": 0.0, "scorer": "random"}"#, "keep_ratio 0 is out of range"),
            (r#"{"layers": [1], "keep_ratio": 1.5, "scorer": "random"}"#, "keep_ratio 1.5 is out of range"),
            (r#"{"layers": [1, 2], "keep_ratio": [0.5], "scorer": "random"}"#, "1 numbers for 2 layers"),
            (r#"{"layers": [1], "keep_ratio": 0.5}"#, "modules names no file"),
            (
                r#"{"layers": [1], "keep_ratio": 0.5, "scorer": "random", "min_tail_tokens": 0}"#,
                "min_tail_tokens is 0",
            ),
            (
                r#"{"layers": [1], "keep_ratio": 0.5, "scorer": "random", "protect": [[4, 4]]}"#,
                "holds no position",
            ),
            (
                r#"{"layers": [1], "keep_ratio": 0.5, "scorer": "random", "colour": 1}"#,
                "unknown field `colour`",
            ),
        ] {
            let error = PruneSpec::from_json(serde_json::from_str(json).unwrap(), Path::new("")).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{json}: {error:#}");
        }
    }
}

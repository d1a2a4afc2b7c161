//! Arguments into a recipe.

use super::Args;
use super::choices::{Hybrid, Rotate};
use anyhow::{Context, Result};
use pixel_core::plan::{Recipe, Treatment};
use pixel_core::{CodecSpec, FactorStorage};
use pixel_experimental::Preset;

impl Args {
    /// The recipe of a file or a preset, if there is one, with the other arguments laid over it.
    pub(super) fn recipe(&self) -> Result<Recipe> {
        let mut recipe = self.base()?;
        self.apply_to_layers(&mut recipe.layers)?;
        self.apply_low_rank(&mut recipe);
        if let Some(how) = &self.embeddings {
            recipe.embeddings = embeddings(how, &recipe.layers)?;
        }
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        recipe.damping = self.damping.or(recipe.damping);
        if !self.include.is_empty() {
            recipe.include.clone_from(&self.include);
        }
        recipe.exclude.extend(self.exclude.iter().cloned());
        Ok(recipe)
    }

    /// The recipe before the other arguments.
    fn base(&self) -> Result<Recipe> {
        Ok(match (&self.recipe, self.preset) {
            (None, None) => Recipe::default(),
            (None, Some(preset)) => Preset::from(preset).recipe(),
            (Some(path), _) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Recipe::from_toml(&text).with_context(|| path.display().to_string())?
            }
        })
    }

    fn apply_to_layers(&self, layers: &mut Treatment) -> Result<()> {
        if let Some(codec) = &self.codec {
            // Options are those of a codec.
            if whole(layers).codec.as_ref() != Some(codec) {
                layers.options = None;
            }
            layers.codec = Some(codec.clone());
        }
        layers.bits = self.bits.or(layers.bits);
        for option in &self.option {
            let (name, value) =
                option.split_once('=').with_context(|| format!("--option {option}: expected NAME=VALUE"))?;
            let value = value.parse().with_context(|| format!("--option {option}: {value} is not a whole number"))?;
            layers.options.get_or_insert_default().insert(name.to_owned(), value);
        }
        layers.rotate = match self.rotate {
            Rotate::Auto => layers.rotate,
            Rotate::Always => Some(true),
            Rotate::Never => Some(false),
        };
        layers.protect = self.protect.or(layers.protect);
        Ok(())
    }

    fn apply_low_rank(&self, recipe: &mut Recipe) {
        let factors = self.factors.map(FactorStorage::from);
        recipe.layers.factors = factors.or(recipe.layers.factors);
        recipe.embeddings.factors = factors.or(recipe.embeddings.factors);
        match self.hybrid {
            None | Some(Hybrid::Auto) => {}
            Some(Hybrid::Rank(rank)) => recipe.layers.rank = Some(rank),
            Some(Hybrid::Never) => {
                (recipe.layers.rank, recipe.embeddings.rank) = (None, None);
                recipe.rules.iter_mut().for_each(|rule| rule.treatment.rank = None);
            }
        }
    }
}

/// What `--embeddings` asks for.
fn embeddings(how: &str, layers: &Treatment) -> Result<Treatment> {
    Ok(match how {
        "keep" => Treatment { keep: Some(true), ..Default::default() },
        "same" => whole(layers),
        spec => {
            let CodecSpec { codec, bits, options } = spec.parse().context("--embeddings")?;
            let options = Some(options).filter(|options| !options.is_empty());
            Treatment { codec: Some(codec), bits: Some(bits), options, ..Default::default() }
        }
    })
}

/// The treatment of layers with the codec and the rate that it has where it names none.
fn whole(layers: &Treatment) -> Treatment {
    let default = Recipe::default().layers;
    Treatment { codec: layers.codec.clone().or(default.codec), bits: layers.bits.or(default.bits), ..layers.clone() }
}

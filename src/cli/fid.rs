//! `ortdpo fid`: how far a set of pictures is from another one, and how diverse it is.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use ortdpo::model_folder::ContentHash;
use ortdpo::progress::Console;
use ortdpo::reward::RewardModel;
use ortdpo::runtime::{self, RuntimeOptions};
use ortdpo::score::{prompts, source};
use ortdpo::setmetric::{
    self, Distance, KidOptions, Reference, SetFeatures, Statistics, frechet_distance, kid, vendi_score,
};
use ortdpo::stats::Summary;
use ortdpo::table::{Column, Format, Table};
use ortdpo::{Error, Result};

use super::compute::{Compute, FeatureCache};
use super::output;

const EXAMPLES: &str = "\
Examples:
  ortdpo fid --features inception --images out --reference coco-val.npz
  ortdpo fid --features inception --images photos --save-statistics photos.npz
  ortdpo fid --features models/tiny-rewards/clip --images out/adapted --reference out/base
  ortdpo fid --features lpips-alex --images out
                                    diversity alone: LPIPS between the pictures of each prompt

An extractor is a folder with a manifest (docs/reward.md): Inception for FID, the image tower of CLIP for CLIP-FID, a \
network with heads (kind perceptual) for LPIPS. FID and KID need --reference.";

/// Asks the work to end.
static STOP: AtomicBool = AtomicBool::new(false);

/// Distance of a set of pictures from another one (FID, KID), and its diversity
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Fid {
    /// What turns pictures into features: a folder with reward.yaml, or a name as for rewards
    #[arg(long, value_name = "NAME|DIR")]
    features: String,
    /// Folder, glob in quotes, images.jsonl or parquet file
    #[arg(long, value_name = "PICTURES")]
    images: String,
    /// Other pictures, or statistics of them (npz of this program, pytorch-fid or clean-fid)
    #[arg(long, value_name = "PICTURES|FILE.npz")]
    reference: Option<String>,
    /// Write statistics and features of --images, to be a --reference later
    #[arg(long, value_name = "FILE.npz")]
    save_statistics: Option<PathBuf>,
    /// Random subsets that KID is averaged over
    #[arg(long, value_name = "N", default_value_t = KidOptions::default().subsets)]
    kid_subsets: usize,
    /// Pictures of a subset
    #[arg(long, value_name = "N", default_value_t = KidOptions::default().subset_size)]
    kid_subset_size: usize,
    /// Seed of the subsets
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    cache: FeatureCache,
    #[command(flatten)]
    compute: Compute,
    /// text, markdown, csv, json or latex
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    format: Format,
}

/// The extractor's name and content.
struct Extractor {
    name: String,
    hash: ContentHash,
}

impl Fid {
    /// Does what was asked for.
    pub fn run(self, quiet: bool) -> Result<()> {
        runtime::init(&RuntimeOptions::default())?;
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::Runtime(format!("cannot listen for Ctrl-C: {e}")))?;
        let console = Console::new(quiet);
        // First, since what is wrong with it would otherwise be told after all the work.
        let named = self.reference.as_deref();
        let other = named.map(|named| self.reference(named, console)).transpose()?;
        let (extractor, set) = self.embed(&self.images, console)?;
        let mut rows = Rows::default();
        if self.save_statistics.is_some() || other.is_some() {
            let own = self.as_reference(&set, &extractor)?;
            if let Some(path) = &self.save_statistics {
                own.write(path)?;
            }
            if let Some(other) = &other {
                self.compare(&own, other, &mut rows, console)?;
            }
        }
        rows.diversity(&set)?;
        output::line(rows.table(&extractor.name, set.n).render(self.format))
    }

    fn extractor(&self) -> Result<(Extractor, RewardModel)> {
        let options = self.compute.session();
        let model = RewardModel::open(&self.features, &options)?;
        let extractor = Extractor {
            name: model.manifest().name.clone(),
            hash: model.features_hash()?,
        };
        Ok((extractor, model))
    }

    /// Features of the pictures that `named` stands for.
    fn embed(&self, named: &str, console: Console) -> Result<(Extractor, SetFeatures)> {
        let (extractor, model) = self.extractor()?;
        let source = prompts::from_pictures(source::open(named)?);
        let set = setmetric::embed(model, source, self.cache.folder(), &STOP, console)?;
        for (file, problem) in &set.broken {
            console.say(&format!("{file}: {problem}; left out."));
        }
        Ok((extractor, set))
    }

    /// The other set.
    fn reference(&self, named: &str, console: Console) -> Result<Reference> {
        let path = Path::new(named);
        if path.extension().is_none_or(|extension| extension != "npz") {
            let (extractor, set) = self.embed(named, console)?;
            return self.as_reference(&set, &extractor);
        }
        let reference = Reference::read(path)?;
        let (extractor, _) = self.extractor()?;
        match reference.extractor {
            Some(hash) if hash != extractor.hash => Err(Error::bad(
                named,
                format!("holds features of another extractor than {}", extractor.name),
                "Make the statistics anew with this one: ortdpo fid --save-statistics.",
            )),
            _ => Ok(reference),
        }
    }

    fn as_reference(&self, set: &SetFeatures, extractor: &Extractor) -> Result<Reference> {
        let Some(features) = &set.features else {
            return Err(Error::bad(
                &self.features,
                "is of kind perceptual, whose features are for distances within a set only",
                "Take an extractor of kind feature_extractor, or a CLIP reward.",
            ));
        };
        Ok(Reference {
            statistics: Statistics::of(features.view())?,
            features: Some(features.clone()),
            extractor: Some(extractor.hash),
        })
    }

    /// FID, and KID where the other set's features are known.
    fn compare(&self, own: &Reference, other: &Reference, rows: &mut Rows, console: Console) -> Result<()> {
        for set in [own, other] {
            if let Some(warning) = set.statistics.rank_warning() {
                console.say(&format!("warning: {warning}."));
            }
        }
        rows.add("FID", frechet_distance(&own.statistics, &other.statistics)?, None);
        if let (Some(features), Some(others)) = (&own.features, &other.features) {
            let options = KidOptions {
                subsets: self.kid_subsets,
                subset_size: self.kid_subset_size,
                seed: self.seed,
            };
            let found = kid(features.view(), others.view(), &options)?;
            rows.add("KID", found.mean, Some(found.std));
        }
        Ok(())
    }
}

/// Metrics in the order in which they are printed.
#[derive(Default)]
struct Rows(Vec<(&'static str, f64, Option<f64>)>);

impl Rows {
    fn add(&mut self, metric: &'static str, value: f64, spread: Option<f64>) {
        self.0.push((metric, value, spread));
    }

    /// What the set says by itself.
    fn diversity(&mut self, set: &SetFeatures) -> Result<()> {
        if let Some(features) = &set.features {
            self.add("Vendi score", vendi_score(features.view())?, None);
        }
        if let Some(summary) = Summary::of(&set.diversity) {
            let metric = match set.distance {
                Distance::Cosine => "1 - cosine within a prompt",
                Distance::SquaredEuclidean => "LPIPS within a prompt",
            };
            self.add(metric, summary.mean, summary.standard_error);
        }
        Ok(())
    }

    fn table(self, extractor: &str, pictures: usize) -> Table {
        let mut table = Table::new([
            Column::text("metric"),
            Column::text("features"),
            Column::integer("pictures"),
            Column::real("value", 4),
            Column::real("spread", 4),
        ]);
        for (metric, value, spread) in self.0 {
            table.push([
                metric.into(),
                extractor.into(),
                pictures.into(),
                value.into(),
                spread.into(),
            ]);
        }
        table
    }
}

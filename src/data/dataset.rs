//! A split with everything encoded: pairs, latent distributions and text embeddings by index.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::buckets::Buckets;
use super::cache::{Key, Store};
use super::encoder::{Encoders, Identity};
use super::fill::{EncodeOptions, OnProgress, Progress, Stage, caption_key, fill, view_key};
use super::image::{PREPROCESSING_VERSION, Size, View, crop_of};
use super::pair::{PairSource, Preference};
use super::table::{Counts, IMPORTER_VERSION, PairRow, Table};
use crate::config::data::MicroConditioning;
use crate::model_folder::ContentHash;
use crate::pipeline::{Embedding, LatentScaling, Moments, TimeIds};
use crate::rng::PairId;
use crate::{Error, Result};

/// A split ready for training or evaluation.
#[derive(Debug)]
pub struct Dataset {
    table: Table,
    images: Store,
    captions: Store,
    scaling: LatentScaling,
    options: EncodeOptions,
    buckets: Buckets,
    channels: usize,
    /// Pixels along a side of one latent.
    pixels_per_latent: usize,
    text_shape: [usize; 2],
    pooled_len: usize,
    has_variance: bool,
}

impl Dataset {
    /// Opens a split, encoding into `cache` what is not there yet. If nothing changed since an earlier run,
    /// neither the data set nor a model is loaded.
    ///
    /// # Errors
    /// The data set or the model is not what it should be, too many rows are damaged, the cache cannot be
    /// written, or `progress` asked to stop ([`Error::Interrupted`]).
    pub fn prepare(
        source: &dyn PairSource,
        encoders: &dyn Encoders,
        cache: &Path,
        options: EncodeOptions,
        progress: &mut OnProgress<'_>,
    ) -> Result<Self> {
        let folders = Folders::new(cache, &encoders.identity()?, source, &options)?;
        let mut images = Store::open(&folders.images)?;
        let mut captions = Store::open(&folders.captions)?;
        let scaling = encoders.scaling()?;
        let finished =
            Table::load(&folders.table).filter(|table| is_complete(table, &images, &captions, &options));
        let damaged = match &finished {
            Some(table) => find_damage(table, &options, &mut images, &mut captions, progress)?,
            None => false,
        };
        let table = match finished.filter(|_| !damaged) {
            Some(table) => table,
            None => {
                let table = fill_stores(source, encoders, &options, &mut images, &mut captions, progress)?;
                folders.check_unchanged(source, &table)?;
                folders.describe(&options)?;
                table.save(&folders.table)?;
                table
            }
        };
        Self::new(table, images, captions, scaling, options)
    }

    fn new(
        table: Table,
        images: Store,
        captions: Store,
        scaling: LatentScaling,
        options: EncodeOptions,
    ) -> Result<Self> {
        let mut dataset = Self {
            table,
            images,
            captions,
            scaling,
            buckets: options.buckets(),
            options,
            channels: 0,
            pixels_per_latent: 1,
            text_shape: [0; 2],
            pooled_len: 0,
            has_variance: true,
        };
        let first = dataset.moments(0, View::CENTER)?;
        let (channels, height, _) = first[0].mean.dim();
        dataset.channels = channels;
        dataset.pixels_per_latent = dataset.size(0).height as usize / height.max(1);
        dataset.has_variance = first[0].logvar.is_some();
        let empty = dataset.embedding("")?;
        dataset.text_shape = empty.hidden.dim().into();
        dataset.pooled_len = empty.pooled.map_or(0, |pooled| pooled.len());
        Ok(dataset)
    }

    /// The usable pairs, in the order of their ids.
    pub fn pairs(&self) -> &[PairRow] {
        &self.table.pairs
    }

    /// Index of the pair with this id, if it is among the usable ones.
    pub fn index_of(&self, id: PairId) -> Option<usize> {
        self.table.pairs.binary_search_by_key(&id, |pair| pair.id).ok()
    }

    /// Rows read, used and left out.
    pub fn counts(&self) -> &Counts {
        &self.table.counts
    }

    /// Hash over captions, labels and images of all rows, in hexadecimal, for the run's manifest.
    pub fn hash(&self) -> &str {
        &self.table.hash
    }

    /// Shape of the latent of a square image, (C,H,W).
    pub fn latent_shape(&self) -> [usize; 3] {
        let side = self.options.resolution as usize / self.pixels_per_latent;
        [self.channels, side, side]
    }

    /// Size in pixels that a pair's images are trained in.
    pub fn size(&self, index: usize) -> Size {
        self.buckets.of_pair(self.table.pairs[index].originals)
    }

    /// Height and width of a pair's latents.
    pub fn latent_size(&self, index: usize) -> [usize; 2] {
        self.size(index).sides().map(|side| side / self.pixels_per_latent)
    }

    /// Heights and widths of all pairs' latents with how many pairs have each, sorted.
    pub fn latent_sizes(&self) -> BTreeMap<[usize; 2], u64> {
        let mut counts = BTreeMap::new();
        for index in 0..self.pairs().len() {
            *counts.entry(self.latent_size(index)).or_default() += 1;
        }
        counts
    }

    /// Micro-conditioning of a pair's images under a view, the preferred one first (of a tie, the first image).
    pub fn time_ids(&self, index: usize, view: View) -> [TimeIds; 2] {
        self.time_ids_of(index, [view; 2])
    }

    /// As [`Dataset::time_ids`], each image under its own view.
    pub fn time_ids_of(&self, index: usize, views: [View; 2]) -> [TimeIds; 2] {
        let (pair, size) = (&self.table.pairs[index], self.size(index));
        let originals = in_order(pair.preference, pair.originals);
        [0, 1].map(|i| match self.options.micro_conditioning {
            MicroConditioning::Image => {
                let crop = crop_of(originals[i], size, views[i]);
                TimeIds::new(originals[i].sides(), crop, size.sides())
            }
            MicroConditioning::Target => TimeIds::whole(size.sides()),
        })
    }

    /// Shape of a caption's embedding, (L,D).
    pub fn text_shape(&self) -> [usize; 2] {
        self.text_shape
    }

    /// Width of a caption's pooled embedding; 0 where the model has none.
    pub fn pooled_len(&self) -> usize {
        self.pooled_len
    }

    /// How latents are scaled when they are drawn.
    pub fn scaling(&self) -> LatentScaling {
        self.scaling
    }

    /// How the split was encoded.
    pub fn options(&self) -> &EncodeOptions {
        &self.options
    }

    /// What a user should know before training: one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let counts = &self.table.counts;
        let mut warnings = Vec::new();
        if !self.has_variance {
            warnings.push(
                "the VAE export gives latent_sample only, so every visit of an image sees the same latent; \
                 export it with a current optimum-onnx to draw a new one each time"
                    .to_owned(),
            );
        }
        if counts.skipped > 0 {
            let examples = self.table.examples.join("; ");
            warnings.push(format!(
                "{} of {} rows are damaged and skipped, such as {examples}",
                counts.skipped, counts.rows
            ));
        }
        if counts.truncated_captions > 0 {
            let (cut, all, context) = (counts.truncated_captions, counts.captions, self.text_shape[0]);
            warnings.push(format!(
                "{cut} of {all} captions are longer than {context} tokens and are cut"
            ));
        }
        warnings
    }

    /// All captions that are not empty, each once, in the order in which they come first.
    pub fn captions(&self) -> Vec<String> {
        let all = (0..self.pairs().len()).map(|index| self.caption(index));
        let unique: indexmap::IndexSet<&str> = all.filter(|caption| !caption.trim().is_empty()).collect();
        unique.into_iter().map(str::to_owned).collect()
    }

    /// Caption of a pair.
    pub fn caption(&self, index: usize) -> &str {
        &self.table.captions[self.table.pairs[index].caption as usize]
    }

    /// Latent distributions of a pair, the preferred image first (of a tie, the first image). The view must be
    /// one of those that were encoded.
    ///
    /// # Errors
    /// The cache was damaged since it was opened.
    pub fn moments(&self, index: usize, view: View) -> Result<[Moments; 2]> {
        self.moments_of(index, [view; 2])
    }

    /// As [`Dataset::moments`], each image under its own view.
    ///
    /// # Errors
    /// The cache was damaged since it was opened.
    pub fn moments_of(&self, index: usize, views: [View; 2]) -> Result<[Moments; 2]> {
        let (pair, size) = (&self.table.pairs[index], self.size(index));
        let read = |image: Key, view: View| {
            let key = view_key(image, size, view);
            let tensors = self.images.read(key);
            tensors
                .and_then(Moments::from_tensors)
                .ok_or_else(|| lost(&self.images, key))
        };
        let [first, second] = in_order(pair.preference, pair.images);
        Ok([read(first, views[0])?, read(second, views[1])?])
    }

    /// Embedding of a caption of this split or of the empty one.
    ///
    /// # Errors
    /// The cache was damaged since it was opened.
    pub fn embedding(&self, caption: &str) -> Result<Embedding> {
        let key = caption_key(caption);
        let tensors = self.captions.read(key);
        let embedding = tensors.and_then(Embedding::from_tensors);
        embedding.ok_or_else(|| lost(&self.captions, key))
    }
}

/// What an entry is to its readers that is there no more.
fn lost(store: &Store, key: Key) -> Error {
    Error::bad(
        store.place(key).display().to_string(),
        "an entry of the encoding cache is damaged or gone",
        "Run again: what is damaged or missing is found and made again, unless data.verify_cache is false.",
    )
}

/// The preferred one first; of a tie, the first.
fn in_order<T>(preference: Preference, [first, second]: [T; 2]) -> [T; 2] {
    match preference {
        Preference::Second => [second, first],
        Preference::First | Preference::Tie => [first, second],
    }
}

/// Where a split's encodings are kept.
struct Folders {
    images: PathBuf,
    captions: PathBuf,
    table: PathBuf,
    identity: Identity,
    /// What the source's files were like.
    stamp: ContentHash,
}

impl Folders {
    fn new(
        cache: &Path,
        identity: &Identity,
        source: &dyn PairSource,
        options: &EncodeOptions,
    ) -> Result<Self> {
        let EncodeOptions {
            resolution,
            buckets,
            views,
            keep_ties,
            max_skipped_share,
            ..
        } = options;
        let images = Key::of(&[
            &identity.images.0,
            &resolution.to_le_bytes(),
            &PREPROCESSING_VERSION.to_le_bytes(),
        ]);
        let captions = Key::of(&[&identity.captions.0]);
        let stamp = source.stamp()?;
        let choices = format!("{IMPORTER_VERSION} {buckets:?} {views:?} {keep_ties} {max_skipped_share}");
        let table = Key::of(&[
            images.as_bytes(),
            captions.as_bytes(),
            &stamp.0,
            choices.as_bytes(),
        ]);
        Ok(Self {
            images: cache.join(format!("images-{images}")),
            captions: cache.join(format!("captions-{captions}")),
            table: cache.join("tables").join(format!("{table}.json")),
            identity: *identity,
            stamp,
        })
    }

    /// Refuses a source whose files are not what they were when it was opened: rows would be left out that are there when
    /// the run is resumed. What was encoded stays in the cache.
    fn check_unchanged(&self, source: &dyn PairSource, table: &Table) -> Result<()> {
        if source.stamp()? == self.stamp {
            return Ok(());
        }
        let example = table.examples.last();
        let example = example.map_or(String::new(), |example| format!(", such as {example}"));
        Err(Error::bad(
            source.place(),
            format!("changed while it was encoded{example}"),
            "Put the files back as they were, or wait until they are all written, and run the same command again: what was \
             encoded is kept.",
        ))
    }

    /// Leaves a note in each folder on what it holds, for people who clean up.
    fn describe(&self, options: &EncodeOptions) -> Result<()> {
        let notes = [
            (
                &self.images,
                json!({"vae_encoder": self.identity.images.to_string(), "resolution": options.resolution}),
            ),
            (
                &self.captions,
                json!({"text_encoder": self.identity.captions.to_string()}),
            ),
        ];
        for (folder, note) in notes {
            let path = folder.join("about.json");
            fs::write(&path, format!("{note:#}\n")).map_err(Error::io(&path, "write"))?;
        }
        Ok(())
    }
}

/// Keys of every image entry that a table needs.
fn image_keys(table: &Table, options: &EncodeOptions) -> impl Iterator<Item = Key> {
    let (buckets, views) = (options.buckets(), options.views);
    let images = table.pairs.iter().flat_map(move |pair| {
        let size = buckets.of_pair(pair.originals);
        pair.images.map(|image| (image, size))
    });
    images.flat_map(move |(image, size)| views.all().map(move |view| view_key(image, size, view)))
}

/// Keys of every caption entry that a table needs.
fn caption_keys(table: &Table) -> impl Iterator<Item = Key> {
    let captions = table.captions.iter().map(String::as_str);
    captions.chain([""]).map(caption_key)
}

fn is_complete(table: &Table, images: &Store, captions: &Store, options: &EncodeOptions) -> bool {
    !table.pairs.is_empty()
        && image_keys(table, options).all(|key| images.contains(key))
        && caption_keys(table).all(|key| captions.contains(key))
}

/// Entries whose checksums are compared at once.
const CHECKED_AT_ONCE: usize = 4096;

/// Whether entries of a complete table are damaged.
fn find_damage(
    table: &Table,
    options: &EncodeOptions,
    images: &mut Store,
    captions: &mut Store,
    progress: &mut OnProgress<'_>,
) -> Result<bool> {
    if !options.verify {
        return Ok(false);
    }
    let total = (image_keys(table, options).count() + caption_keys(table).count()) as u64;
    let mut done = 0;
    let mut damaged = false;
    let of_images: Box<dyn Iterator<Item = Key>> = Box::new(image_keys(table, options));
    let of_captions: Box<dyn Iterator<Item = Key>> = Box::new(caption_keys(table));
    for (store, mut keys) in [(images, of_images), (captions, of_captions)] {
        loop {
            let part: Vec<Key> = keys.by_ref().take(CHECKED_AT_ONCE).collect();
            if part.is_empty() {
                break;
            }
            damaged |= !store.damaged(&part).is_empty();
            done += part.len() as u64;
            let stage = Stage::Checking;
            if (progress)(Progress { stage, done, total }).is_break() {
                return Err(Error::Interrupted("the cache was being checked".into()));
            }
        }
    }
    Ok(damaged)
}

fn fill_stores(
    source: &dyn PairSource,
    encoders: &dyn Encoders,
    options: &EncodeOptions,
    images: &mut Store,
    captions: &mut Store,
    progress: &mut OnProgress<'_>,
) -> Result<Table> {
    let total = source.len();
    let mut waiting = ControlFlow::Continue(());
    let mut wait = |progress: &mut OnProgress<'_>| {
        waiting = (progress)(Progress {
            stage: Stage::Waiting,
            done: 0,
            total,
        });
    };
    let mut image_writer = images.writer(|| wait(progress))?;
    let mut caption_writer = captions.writer(|| wait(progress))?;
    if waiting.is_break() {
        return Err(Error::Interrupted(
            "another process was writing to the cache".into(),
        ));
    }
    for writer in [&mut image_writer, &mut caption_writer] {
        if options.verify {
            let present = writer.snapshot();
            let mut keys = present.keys();
            loop {
                let part: Vec<Key> = keys.by_ref().take(CHECKED_AT_ONCE).collect();
                if part.is_empty() {
                    break;
                }
                let damaged = writer.store().damaged(&part);
                writer.forget(&damaged);
            }
        }
    }
    let writers = (&mut image_writer, &mut caption_writer);
    let table = fill(source, encoders, options, writers, progress)?;
    image_writer.finish()?;
    caption_writer.finish()?;
    Ok(table)
}

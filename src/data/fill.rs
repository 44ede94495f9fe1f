//! Filling the encoding cache: one pass over a split, in which only what the cache lacks is decoded and
//! encoded.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use indexmap::IndexSet;
use ndarray::{Array4, Axis};
use rayon::prelude::*;

use super::buckets::Buckets;
use super::cache::{Key, Writer};
use super::decode::{CHUNKS_WAITING, Checked, Decoder, Finding, PairHead};
use super::encoder::{CaptionEncoder, Encoders, ImageEncoder};
use super::image::{Prepared, Size, View};
use super::pair::{PairSource, Place, Preference};
use super::table::{PairRow, Table};
use super::views::Views;
use crate::config::data::{BucketConfig, MicroConditioning};
use crate::pipeline::PromptTokens;
use crate::rng::PairId;
use crate::{Error, Result};

/// What preparing a data set is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Another process writes to the same cache.
    Waiting,
    /// Checksums of the cache are compared.
    Checking,
    /// Rows are read and images encoded.
    Images,
    /// Captions are encoded.
    Captions,
}

/// How far preparing a data set has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The present stage.
    pub stage: Stage,
    /// Rows or captions done.
    pub done: u64,
    /// Rows or captions in all.
    pub total: u64,
}

/// Hears of progress; `Break` stops the work, which a later run takes up again.
pub type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// How a split is encoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncodeOptions {
    /// Side of the square images, in pixels.
    pub resolution: u32,
    /// Other sizes around it.
    pub buckets: Option<BucketConfig>,
    /// What SDXL's denoiser is told of sizes and crops.
    pub micro_conditioning: MicroConditioning,
    /// Views of each image.
    pub views: Views,
    /// Whether the images of a pair have views of their own.
    pub independent_views: bool,
    /// Whether ties become pairs.
    pub keep_ties: bool,
    /// Share of damaged rows above which the data set is refused.
    pub max_skipped_share: f64,
    /// Images or captions encoded at once.
    pub batch: usize,
    /// Whether the checksums of all entries are compared before use.
    pub verify: bool,
}

impl EncodeOptions {
    /// The sizes that images are brought to.
    pub fn buckets(&self) -> Buckets {
        Buckets::new(self.resolution, self.buckets.as_ref())
    }
}

/// Cache key of one view of an image file, in a folder of its resolution: squares are of that side.
pub(super) fn view_key(image: Key, size: Size, view: View) -> Key {
    let (x, y) = view.crop.unwrap_or((f64::NAN, f64::NAN));
    let [x, y] = [x, y].map(|position| position.to_bits().to_le_bytes());
    let flip = [view.flip.into()];
    let shape = [size.height.to_le_bytes(), size.width.to_le_bytes()].concat();
    let parts = [image.as_bytes(), &x, &y, &flip, &shape];
    Key::of(match size.height == size.width {
        true => &parts[..4],
        false => &parts,
    })
}

/// Cache key of a caption.
pub(super) fn caption_key(caption: &str) -> Key {
    Key::of(&[caption.as_bytes()])
}

/// Reads the whole split and returns its table, with every entry that it needs in the cache.
pub(super) fn fill(
    source: &dyn PairSource,
    encoders: &dyn Encoders,
    options: &EncodeOptions,
    (images, captions): (&mut Writer<'_>, &mut Writer<'_>),
    progress: &mut OnProgress<'_>,
) -> Result<Table> {
    let mut table = ImagePass::new(source, encoders, options, images, progress).run()?;
    if table.pairs.is_empty() {
        return Err(no_pairs(source, &table));
    }
    encode_captions(encoders, options, captions, progress, &mut table)?;
    Ok(table)
}

fn no_pairs(source: &dyn PairSource, table: &Table) -> Error {
    let counts = &table.counts;
    let what = format!(
        "has no usable pair: of {} rows {} are ties, {} unlabelled, {} damaged",
        counts.rows, counts.ties, counts.unlabelled, counts.skipped
    );
    Error::bad(
        source.place(),
        what,
        "Check that data.path is the right data set.",
    )
}

/// A view of an image that waits to be encoded.
type Waiting = (Key, Arc<Prepared>, View);

/// Images that may wait for others of their size, in batches.
const BATCHES_WAITING: usize = 8;

struct ImagePass<'a, 'w, 'p> {
    source: &'a dyn PairSource,
    encoders: &'a dyn Encoders,
    options: &'a EncodeOptions,
    writer: &'a mut Writer<'w>,
    progress: &'a mut OnProgress<'p>,
    /// Loaded when there is something to encode.
    encoder: Option<Box<dyn ImageEncoder + 'a>>,
    /// What waits to be encoded, by size: images of a batch are alike.
    queues: BTreeMap<Size, VecDeque<Waiting>>,
    buckets: Buckets,
    /// Image files that do not decode, and why.
    broken: HashMap<Key, String>,
    captions: IndexSet<String>,
    hasher: blake3::Hasher,
    table: Table,
}

impl<'a, 'w, 'p> ImagePass<'a, 'w, 'p> {
    fn new(
        source: &'a dyn PairSource,
        encoders: &'a dyn Encoders,
        options: &'a EncodeOptions,
        writer: &'a mut Writer<'w>,
        progress: &'a mut OnProgress<'p>,
    ) -> Self {
        Self {
            source,
            encoders,
            options,
            writer,
            progress,
            encoder: None,
            queues: BTreeMap::new(),
            buckets: options.buckets(),
            broken: HashMap::new(),
            captions: IndexSet::new(),
            hasher: blake3::Hasher::new(),
            table: Table::default(),
        }
    }

    fn run(mut self) -> Result<Table> {
        let buckets = self.buckets.clone();
        let decoder = Decoder {
            source: self.source,
            buckets: &buckets,
            keep_ties: self.options.keep_ties,
            views: self.options.views,
            present: self.writer.snapshot(),
            claimed: HashSet::new(),
        };
        let (send, receive) = sync_channel(CHUNKS_WAITING);
        std::thread::scope(|scope| {
            scope.spawn(move || decoder.run(&send));
            // Leaving early drops the receiver, upon which the decoder ends.
            for chunk in receive {
                for row in chunk? {
                    self.take(row)?;
                }
                self.encode_queued(BATCHES_WAITING * self.options.batch)?;
                self.report()?;
            }
            self.encode_queued(0)
        })?;
        self.table.hash = self.hasher.finalize().to_hex().to_string();
        self.table.counts.pairs = self.table.pairs.len() as u64;
        self.table.captions = self.captions.into_iter().collect();
        Ok(self.table)
    }

    fn take(&mut self, row: Checked) -> Result<()> {
        self.table.counts.rows += 1;
        let Checked { id, place, finding } = row;
        match finding {
            Finding::Unlabelled => {
                self.hash_row(id, b"unlabelled", &[]);
                self.table.counts.unlabelled += 1;
            }
            Finding::Damaged(reason) => {
                self.hash_row(id, b"damaged", &[]);
                self.table.skip(&place, &reason);
            }
            Finding::Pair {
                pair,
                images,
                originals,
                decoded,
            } => {
                let label: &[u8] = match pair.preference {
                    Preference::First => b"first",
                    Preference::Second => b"second",
                    Preference::Tie => b"tie",
                };
                let content = [
                    pair.caption.as_bytes(),
                    images[0].as_bytes(),
                    images[1].as_bytes(),
                ];
                self.hash_row(id, label, &content);
                for (key, outcome) in decoded {
                    self.enqueue(key, outcome);
                }
                self.add_pair(id, &place, pair, images, originals);
            }
        }
        self.check_share()
    }

    fn hash_row(&mut self, id: PairId, label: &[u8], content: &[&[u8]]) {
        let id = id.0.to_le_bytes();
        let parts = [&id[..], label].into_iter().chain(content.iter().copied());
        self.hasher.update(Key::of(&parts.collect::<Vec<_>>()).as_bytes());
    }

    fn enqueue(&mut self, image: Key, outcome: Result<Arc<Prepared>, String>) {
        match outcome {
            Ok(prepared) => {
                let size = prepared.target();
                for view in self.options.views.all() {
                    let key = view_key(image, size, view);
                    if !self.writer.store().contains(key) {
                        let queue = self.queues.entry(size).or_default();
                        queue.push_back((key, prepared.clone(), view));
                    }
                }
            }
            Err(reason) => {
                self.broken.insert(image, reason);
            }
        }
    }

    fn add_pair(
        &mut self,
        id: PairId,
        place: &Place,
        pair: PairHead,
        images: [Key; 2],
        originals: [Size; 2],
    ) {
        let PairHead {
            caption,
            preference,
            scores,
        } = pair;
        if preference == Preference::Tie {
            self.table.counts.ties += 1;
            if !self.options.keep_ties {
                return;
            }
        }
        if let Some(reason) = images.iter().find_map(|image| self.broken.get(image)) {
            self.table.skip(place, reason);
            return;
        }
        let caption = self.captions.insert_full(caption).0 as u32;
        self.table.pairs.push(PairRow {
            id,
            preference,
            caption,
            scores,
            images,
            originals,
        });
    }

    /// Refuses as soon as it is certain that too many rows are damaged.
    fn check_share(&self) -> Result<()> {
        let (skipped, rows) = (self.table.counts.skipped, self.source.len());
        if skipped as f64 <= self.options.max_skipped_share * rows as f64 {
            return Ok(());
        }
        let share = self.options.max_skipped_share * 100.0;
        Err(Error::bad(
            self.source.place(),
            format!(
                "more than {share}% of its {rows} rows are damaged, such as {}",
                self.table.examples.join("; ")
            ),
            "Get the data set anew, or raise data.max_skipped_share.",
        ))
    }

    fn report(&mut self) -> Result<()> {
        let (done, total) = (self.table.counts.rows, self.source.len());
        match (self.progress)(Progress {
            stage: Stage::Images,
            done,
            total,
        }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(stopped(&format!("{done} of {total} rows were encoded"))),
        }
    }

    /// Encodes full batches, and others until no more than `most` views wait.
    fn encode_queued(&mut self, most: usize) -> Result<()> {
        let batch = self.options.batch.max(1);
        loop {
            let waiting: usize = self.queues.values().map(VecDeque::len).sum();
            let longest = self.queues.iter_mut().max_by_key(|(_, queue)| queue.len());
            let Some((&size, queue)) = longest.filter(|(_, queue)| !queue.is_empty()) else {
                return Ok(());
            };
            if queue.len() < batch && waiting <= most {
                return Ok(());
            }
            let batch: Vec<Waiting> = queue.drain(..queue.len().min(batch)).collect();
            self.encode(size, &batch)?;
        }
    }

    fn encode(&mut self, size: Size, batch: &[Waiting]) -> Result<()> {
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            none => none.insert(self.encoders.images(self.buckets.sizes())?),
        };
        let moments = encoder.encode(assemble(batch, size).view())?;
        for ((key, ..), moments) in batch.iter().zip(&moments) {
            if !moments.is_finite() {
                return Err(not_finite(self.source));
            }
            self.writer.append(*key, &moments.tensors())?;
        }
        self.writer.commit()
    }
}

/// Images (N,3,H,W) of a batch.
fn assemble(batch: &[Waiting], size: Size) -> Array4<f32> {
    let [height, width] = size.sides();
    let mut images = Array4::zeros((batch.len(), 3, height, width));
    let mut slots: Vec<_> = images.axis_iter_mut(Axis(0)).collect();
    slots
        .par_iter_mut()
        .zip(batch)
        .for_each(|(slot, (_, prepared, view))| {
            let slot = slot
                .as_slice_mut()
                .expect("images of a new batch lie one behind the other");
            prepared.write(*view, slot);
        });
    drop(slots);
    images
}

fn not_finite(source: &dyn PairSource) -> Error {
    Error::bad(
        source.place(),
        "the VAE encoder gives values that are no numbers for one of its images",
        "VAEs in half precision overflow: set runtime.vae_fp32 to true, or export the VAE in fp32.",
    )
}

fn stopped(done: &str) -> Error {
    Error::Interrupted(format!(
        "{done}; they are kept, and the next run goes on from there"
    ))
}

/// Captions of which tokens are in memory at once: SDXL's are 1.3 kB of each.
const CAPTIONS_AT_ONCE: usize = 4096;

/// Encodes the captions that the cache lacks, and the empty one for prompt dropout.
fn encode_captions(
    encoders: &dyn Encoders,
    options: &EncodeOptions,
    writer: &mut Writer<'_>,
    progress: &mut OnProgress<'_>,
    table: &mut Table,
) -> Result<()> {
    let mut encoder = encoders.captions()?;
    let is_missing = |caption: &str| !writer.store().contains(caption_key(caption));
    let all = || table.captions.iter().map(String::as_str).chain([""]);
    let total = all().filter(|caption| is_missing(caption)).count() as u64;
    let (mut done, mut truncated) = (0, 0);
    let mut captions = all().peekable();
    while captions.peek().is_some() {
        let block: Vec<&str> = captions.by_ref().take(CAPTIONS_AT_ONCE).collect();
        let mut missing: Vec<(Key, PromptTokens)> = Vec::new();
        for caption in block {
            let tokens = encoder.tokenize(caption)?;
            truncated += u64::from(tokens.truncated());
            let key = caption_key(caption);
            if !writer.store().contains(key) {
                missing.push((key, tokens));
            }
        }
        for batch in missing.chunks(options.batch.max(1)) {
            encode_batch(&mut *encoder, batch, writer)?;
            done += batch.len() as u64;
            let stage = Stage::Captions;
            if (progress)(Progress { stage, done, total }).is_break() {
                return Err(stopped(&format!("{done} of {total} captions were encoded")));
            }
        }
    }
    table.counts.captions = table.captions.len() as u64;
    table.counts.truncated_captions = truncated;
    Ok(())
}

fn encode_batch(
    encoder: &mut dyn CaptionEncoder,
    batch: &[(Key, PromptTokens)],
    writer: &mut Writer<'_>,
) -> Result<()> {
    let tokens: Vec<&PromptTokens> = batch.iter().map(|(_, tokens)| tokens).collect();
    let embeddings = encoder.encode(&tokens)?;
    for ((key, _), embedding) in batch.iter().zip(&embeddings) {
        writer.append(*key, &embedding.tensors())?;
    }
    writer.commit()
}

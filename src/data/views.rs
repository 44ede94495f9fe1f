//! Augmentation with cached latents: a fixed set of views of each image, of which a visit takes one.
//!
//! Crops and flips have to happen before the VAE, so each view is encoded and kept on its own: `crops: 4`
//! with `flip: true` makes the cache eight times as large. Off by default, one centred view.

use super::image::View;
use crate::rng::{PairId, Purpose, Streams, Visit};

/// The views that are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Views {
    /// Squares taken of each image, the centre being the first.
    pub crops: u32,
    /// Whether each is also mirrored.
    pub flip: bool,
}

impl Default for Views {
    fn default() -> Self {
        Self {
            crops: 1,
            flip: false,
        }
    }
}

impl Views {
    /// All of them, in a fixed order.
    pub fn all(self) -> impl Iterator<Item = View> {
        let flips = if self.flip { &[false, true][..] } else { &[false] };
        (0..self.crops).flat_map(move |crop| {
            flips.iter().map(move |&flip| View {
                crop: position(crop),
                flip,
            })
        })
    }

    /// The views that the two images of a pair have on a visit: the same, or each its own where they are `independent`. The
    /// first's is the same either way.
    pub fn draw(self, streams: &Streams, pair: PairId, visit: Visit, independent: bool) -> [View; 2] {
        let mut crops = streams.pair(Purpose::Crop, pair, visit);
        let mut flips = streams.pair(Purpose::Flip, pair, visit);
        let mut draw = || {
            let crop = match self.crops {
                0 | 1 => 0,
                count => crops.below(u64::from(count)) as u32,
            };
            View {
                crop: position(crop),
                flip: self.flip && flips.chance(0.5),
            }
        };
        let first = draw();
        [first, if independent { draw() } else { first }]
    }
}

/// Position of a crop: the centre, then points of the R2 sequence (M. Roberts, 2018), which spreads any number
/// of points evenly over the square.
fn position(crop: u32) -> Option<(f64, f64)> {
    const PLASTIC: f64 = 1.324_717_957_244_746;
    let along = |step: f64| (0.5 + f64::from(crop) * step).fract();
    (crop > 0).then(|| (along(1.0 / PLASTIC), along(1.0 / (PLASTIC * PLASTIC))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visit_draws_every_view_and_nothing_else() {
        let views = Views { crops: 3, flip: true };
        let all: Vec<View> = views.all().collect();
        assert_eq!(all.len(), 6);
        assert_eq!(all[0], View::CENTER);
        let streams = Streams::new(1);
        let (mut seen, mut differing) = ([0; 6], 0);
        for visit in 0..600 {
            let [view, other] = views.draw(&streams, PairId(4), Visit(visit), false);
            assert_eq!(view, other);
            let [same, own] = views.draw(&streams, PairId(4), Visit(visit), true);
            assert_eq!(view, same);
            differing += u32::from(own != same);
            seen[all.iter().position(|v| *v == view).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&n| (60..140).contains(&n)), "{seen:?}");
        // Five in six.
        assert!((450..550).contains(&differing), "{differing}");
        let plain = Views::default();
        assert_eq!(plain.all().collect::<Vec<_>>(), [View::CENTER]);
        assert_eq!(plain.draw(&streams, PairId(4), Visit(9), true), [View::CENTER; 2]);
    }

    #[test]
    fn crops_spread_over_the_room_there_is() {
        let points: Vec<(f64, f64)> = (1..17).map(|crop| position(crop).unwrap()).collect();
        for quarter in 0..4 {
            let inside = points
                .iter()
                .filter(|(x, y)| (*x > 0.5) as u8 + 2 * (*y > 0.5) as u8 == quarter);
            assert!((3..=5).contains(&inside.count()), "{points:?}");
        }
    }
}

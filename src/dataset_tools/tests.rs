//! Tests of what needs no data set.

use super::inspect::{NEAR, difference_hash};
use super::*;
use image::{Rgb, RgbImage};

#[test]
fn prompts_are_alike_whatever_their_case_and_spacing() {
    assert_eq!(normalised("  A Cat,\n on\ta MAT "), "a cat, on a mat");
    assert_eq!(prompt_key("a  cat"), prompt_key("A cat"));
    assert_ne!(prompt_key("a cat"), prompt_key("acat"));
}

#[test]
fn a_prompt_keeps_its_part_and_the_share_is_met() {
    let hold_out = HoldOut { share: 0.1, seed: 4 };
    let held_out = (0..5000).filter(|n| hold_out.split(&format!("prompt {n}")) == "heldout");
    // Four standard errors.
    assert!((held_out.count() as f64 / 5000.0 - 0.1).abs() < 0.017);
    assert_eq!(hold_out.split("Prompt  7"), hold_out.split("prompt 7"));
}

#[test]
fn difference_hashes_forgive_size_and_brightness_but_not_content() {
    // Columns that grow brighter to the right in the upper half and darker in the lower one.
    let picture = |side: u32, bias: u32| {
        RgbImage::from_fn(side, side, |x, y| {
            let along = 150 * x / side;
            let value = if y < side / 2 { along } else { 150 - along };
            Rgb([(value + bias) as u8; 3])
        })
    };
    let hash = difference_hash(&picture(64, 0));
    assert_eq!(hash, 0xFFFF_FFFF_0000_0000);
    for other in [picture(200, 0), picture(64, 40)] {
        assert!((hash ^ difference_hash(&other)).count_ones() <= NEAR);
    }
    let mirrored = image::imageops::flip_horizontal(&picture(64, 0));
    assert_eq!((hash ^ difference_hash(&mirrored)).count_ones(), 64);
}

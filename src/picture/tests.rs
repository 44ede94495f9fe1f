use image::{Rgb, RgbImage};

use super::{Cell, Grid, Parameters, grid, read_png_text, write_png};

fn plain(width: u32, height: u32, color: [u8; 3]) -> RgbImage {
    RgbImage::from_pixel(width, height, Rgb(color))
}

#[test]
fn text_in_a_png_file_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let image = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8, y as u8, 200]));
    let texts = [
        ("parameters", "a café\nSteps: 2"),
        ("other", "狐 🦊"),
        ("zero", "a\0b"),
    ];
    write_png(&path, &image, &texts).unwrap();
    assert_eq!(image::open(&path).unwrap().to_rgb8(), image);
    let mut read = read_png_text(&path).unwrap();
    read.sort();
    let expected = [
        ("other", "狐 🦊"),
        ("parameters", "a café\nSteps: 2"),
        ("zero", "a\u{fffd}b"),
    ];
    assert_eq!(
        read,
        expected.map(|(key, text)| (key.to_owned(), text.to_owned()))
    );
    // Latin-1 is for readers that know nothing newer.
    let bytes = std::fs::read(&path).unwrap();
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(holds(b"tEXtparameters\0a caf\xe9\n") && holds(b"iTXtother\0"));
}

#[test]
fn files_that_are_no_png_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    write_png(&path, &plain(40, 40, [1, 2, 3]), &[]).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for damaged in [&b"no"[..], &bytes[..bytes.len() / 2]] {
        std::fs::write(&path, damaged).unwrap();
        let error = read_png_text(&path).unwrap_err().to_string();
        assert!(error.contains("a.png: cannot be read as a PNG file"), "{error}");
    }
    assert_eq!(
        read_png_text(&folder.path().join("none.png"))
            .unwrap_err()
            .exit_code(),
        2
    );
    let nowhere = folder.path().join("none/a.png");
    assert!(write_png(&nowhere, &plain(1, 1, [0; 3]), &[]).is_err());
}

#[test]
fn parameters_are_written_as_image_tools_read_them() {
    let pairs = |list: &[(&str, &str)]| {
        list.iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    };
    let parameters = Parameters {
        prompt: "a cat, sitting: there\nsecond line".into(),
        negative: "blurry, grey".into(),
        settings: pairs(&[
            ("Steps", "20"),
            ("Sampler", "dpm++2m"),
            ("CFG scale", "7.5"),
            ("Seed", "1"),
            ("Size", "64x64"),
            ("Model", "one, \"two\": three"),
        ]),
    };
    let text = parameters.to_string();
    assert_eq!(
        text,
        "a cat, sitting: there\nsecond line\nNegative prompt: blurry, grey\nSteps: 20, Sampler: dpm++2m, \
         CFG scale: 7.5, Seed: 1, Size: 64x64, Model: \"one, \\\"two\\\": three\""
    );
    assert_eq!(Parameters::parse(&text), parameters);
    assert_eq!(parameters.get("CFG scale"), Some("7.5"));
    for lone in [
        "a prompt alone",
        "",
        "Note: a, b: c",
        "first\nsecond: with, colon: too",
    ] {
        let read = Parameters::parse(lone);
        assert_eq!((read.prompt.as_str(), read.settings.len()), (lone, 0));
    }
    // As the web UI writes it, without prompt, and with a setting in quotes.
    let read = Parameters::parse(
        "Negative prompt: bad\nSteps: 4, Seed: 7, Lora hashes: \"a: 1, b: 2\", Version: v1",
    );
    assert_eq!((read.prompt.as_str(), read.negative.as_str()), ("", "bad"));
    assert_eq!(read.get("Lora hashes"), Some("a: 1, b: 2"));
}

#[test]
fn small_images_are_enlarged_to_sharp_squares_and_large_ones_reduced() {
    let mut small = plain(64, 64, [255, 0, 0]);
    small.put_pixel(0, 0, Rgb([0, 0, 255]));
    let large = plain(1000, 500, [0, 255, 0]);
    let cells = [&small, &large].map(|image| Cell { image, caption: "" });
    let sheet = grid(&cells, 2);
    assert_eq!(sheet.dimensions(), (12 + 2 * (384 + 12), 12 + 256 + 12));
    assert_eq!(*sheet.get_pixel(12 + 3, 12 + 3), Rgb([0, 0, 255]));
    assert_eq!(*sheet.get_pixel(12 + 4, 12 + 3), Rgb([255, 0, 0]));
    assert_eq!(*sheet.get_pixel(12 + 384 + 12, 12 + 191), Rgb([0, 255, 0]));
}

#[test]
fn captions_fit_below_their_images_and_rows_apart() {
    let image = plain(256, 256, [0, 128, 255]);
    let captions = [
        "",
        "short",
        "a caption that is far too long to fit on the four lines that it is given here, and goes on for many more words, 狐",
    ];
    let cells: Vec<Cell> = captions
        .map(|caption| Cell {
            image: &image,
            caption,
        })
        .to_vec();
    let sheet = Grid {
        title: "a title",
        headings: vec!["base", "tuned"],
        cells,
        columns: 2,
        ..Grid::default()
    }
    .draw();
    let ink = |left: u32, top: u32, width: u32, height: u32| {
        let area = image::imageops::crop_imm(&sheet, left, top, width, height).to_image();
        area.pixels()
            .filter(|pixel| pixel.0[0] < 100 && pixel.0[2] < 100)
            .count()
    };
    let top = 12 + 33 + 12 + 22 + 12;
    assert_eq!(sheet.height(), top + (256 + 22 + 18) + (256 + 88 + 18));
    assert!(ink(0, 0, sheet.width(), 45) > 100, "the title");
    assert!(
        ink(12, 57, 256, 22) > 20 && ink(280, 57, 256, 22) > 20,
        "the headings"
    );
    assert_eq!(ink(12, top + 256, 256, 40), 0, "an empty caption");
    assert!(ink(280, top + 256, 256, 40) > 50, "a short caption");
    let second = top + 256 + 22 + 18;
    assert!(ink(12, second + 256 + 6 + 66, 256, 22) > 50, "the fourth line");
    assert_eq!(
        ink(12 + 256, second + 256, 256 + 24, 106),
        0,
        "nothing beside the cell"
    );
}

#[test]
fn groups_of_columns_stand_further_apart() {
    let image = plain(256, 256, [200; 3]);
    let cell = Cell {
        image: &image,
        caption: "",
    };
    let sheet = |group: usize| Grid {
        cells: vec![cell; 4],
        columns: 4,
        group,
        ..Grid::default()
    };
    let (even, paired) = (sheet(0).draw(), sheet(2).draw());
    assert_eq!(even.width(), 12 + 4 * (256 + 12));
    assert_eq!(paired.width(), even.width() + 24);
    let third = 12 + 2 * (256 + 12) + 24;
    assert_eq!(paired.get_pixel(third - 1, 100).0, [250; 3]);
    assert_eq!(paired.get_pixel(third, 100).0, [200; 3]);
}

#[test]
fn every_printable_character_has_a_glyph_of_its_own() {
    let glyph = |letter: char| {
        let mut image = plain(6, 9, [255; 3]);
        super::font::draw(&mut image, (0, 0), &letter.to_string(), 1, Rgb([0; 3]));
        image.into_raw()
    };
    let mut glyphs: Vec<_> = (' '..='~').map(glyph).collect();
    glyphs.push(glyph('狐'));
    assert_eq!(glyph('é'), glyph('狐'));
    glyphs.sort();
    let all = glyphs.len();
    glyphs.dedup();
    assert_eq!((all, glyphs.len()), (96, 96));
    assert_eq!(super::font::length("±1…"), 7);
}

//! PNG and JPEG files as viewers show them.

use std::fs;
use std::io::Cursor;

use arbora_tasks::TaskError;
use arbora_tasks::images::{ImageSet, PictureChanges};
use image::codecs::jpeg::JpegEncoder;
use image::{
    DynamicImage, GrayAlphaImage, GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, RgbImage,
    Rgba, RgbaImage,
};
use proptest::prelude::*;

/// The one picture of a folder.
fn read(bytes: &[u8]) -> Result<(ImageSet, PictureChanges), TaskError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("picture.png"), bytes).unwrap();
    ImageSet::from_folder(folder.path(), None, None)
}

fn pixels(bytes: &[u8]) -> Vec<u8> {
    read(bytes).unwrap().0.pixels
}

fn changes(bytes: &[u8]) -> PictureChanges {
    read(bytes).unwrap().1
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A picture whose pixels differ, in colour or grey.
fn busy(width: u32, height: u32, is_colour: bool) -> DynamicImage {
    let value = |x: u32, y: u32| (x * 53 + y * 31 + x * y * 7) as u8;
    if is_colour {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([value(x, y), value(y, x), 255 - value(x, y)])
        })
        .into()
    } else {
        GrayImage::from_fn(width, height, |x, y| Luma([value(x, y)])).into()
    }
}

fn jpeg_of(image: &DynamicImage, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    image
        .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, quality))
        .unwrap();
    bytes
}

/// EXIF data that say one thing, how a picture is to be turned.
fn exif(orientation: u8) -> Vec<u8> {
    let entry = [0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0];
    [&b"MM\0*\0\0\0\x08\0\x01"[..], &entry, &[0; 4]].concat()
}

fn jpeg_turned(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let data = [b"Exif\0\0", &exif(orientation)[..]].concat();
    let length = (data.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &data, &jpeg[2..]].concat()
}

/// - at: before which chunk the EXIF data stand
pub fn png_turned(png: &[u8], orientation: u8, at: &[u8; 4]) -> Vec<u8> {
    let chunk = [b"eXIf", &exif(orientation)[..]].concat();
    let mut crc = flate2::Crc::new();
    crc.update(&chunk);
    let length = (chunk.len() as u32 - 4).to_be_bytes();
    let sum = crc.sum().to_be_bytes();
    let at = png.windows(4).position(|four| four == at).unwrap() - 4;
    [&png[..at], &length, &chunk, &sum, &png[at..]].concat()
}

#[test]
fn pictures_are_turned_as_their_exif_data_say() {
    // The corners of what a viewer shows, by orientation 1 to 8: those of the file are 1 2 above 3 4.
    let shown = [
        [1, 2, 3, 4],
        [2, 1, 4, 3],
        [4, 3, 2, 1],
        [3, 4, 1, 2],
        [1, 3, 2, 4],
        [3, 1, 4, 2],
        [4, 2, 3, 1],
        [2, 4, 1, 3],
    ];
    let file = GrayImage::from_fn(16, 8, |x, y| Luma([50 + 50 * (x / 8 + 2 * (y / 4)) as u8]));
    let jpeg = jpeg_of(&file.clone().into(), 100);
    let png = encoded(file, ImageFormat::Png);
    for (orientation, corners) in (1..).zip(shown) {
        for bytes in [
            jpeg_turned(&jpeg, orientation),
            png_turned(&png, orientation, b"IDAT"),
            png_turned(&png, orientation, b"IEND"),
        ] {
            let (image, changes) = read(&bytes).unwrap();
            assert_eq!(changes.rotated, usize::from(orientation != 1));
            let (right, low) = (image.width - 1, image.height - 1);
            let is_upright = orientation < 5;
            assert_eq!(right > low, is_upright, "orientation {orientation}");
            let at = [(0, 0), (right, 0), (0, low), (right, low)];
            let pixel = |(x, y): (usize, usize)| f32::from(image.pixels[y * image.width + x]);
            let found = at.map(|place| (pixel(place) / 50.0).round());
            assert_eq!(found, corners.map(|corner| corner as f32), "{orientation}");
        }
    }
    for upright in [&jpeg, &png, &jpeg_turned(&jpeg, 9)] {
        assert_eq!(changes(upright).rotated, 0);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for is_colour in [false, true] {
        let image = busy(21, 19, is_colour);
        let jpeg = jpeg_of(&image, 80);
        for bytes in [encoded(image, ImageFormat::Png), jpeg] {
            read(&bytes).unwrap();
            for end in 0..bytes.len() {
                let error = read(&bytes[..end]).err();
                let error = error.unwrap_or_else(|| panic!("{end} of {}", bytes.len()));
                assert!(error.to_string().contains("not a readable"), "{error}");
            }
        }
    }
}

#[test]
fn a_jpeg_whose_end_comes_early_is_refused() {
    for (quality, is_colour) in [(30, true), (95, false)] {
        let jpeg = jpeg_of(&busy(40, 35, is_colour), quality);
        let whole = pixels(&jpeg);
        let scan = jpeg.windows(2).position(|two| two == [0xff, 0xda]).unwrap() + 14;
        for end in scan..jpeg.len() - 2 {
            // As when a download ends early.
            let zeros = vec![0; jpeg.len() - end];
            assert!(read(&[&jpeg[..end], &zeros].concat()).is_err());
            let early = [&jpeg[..end], &[0xff, 0xd9]].concat();
            // Only the padding of the last byte is no part of a pixel.
            if let Ok((picture, _)) = read(&early) {
                assert_eq!(picture.pixels, whole, "{end} of {}", jpeg.len());
                assert!(end + 3 >= jpeg.len(), "{end} of {}", jpeg.len());
            }
        }
    }
}

#[test]
fn what_follows_a_picture_does_not_matter() {
    let image = busy(9, 7, true);
    let jpeg = jpeg_of(&image, 90);
    // Phones put a second picture, or a film, behind the first.
    let followed = [&jpeg[..], &jpeg, b"film"].concat();
    assert_eq!(pixels(&followed), pixels(&jpeg));
    let png = encoded(image.clone(), ImageFormat::Png);
    assert_eq!(pixels(&[&png[..], b"more"].concat()), image.into_bytes());
}

#[test]
fn what_is_transparent_lies_on_white() {
    let colour = RgbaImage::from_fn(4, 1, |x, _| {
        Rgba([200, 0, 255, [0, 85, 128, 255][x as usize]])
    });
    let (picture, changes) = read(&encoded(colour, ImageFormat::Png)).unwrap();
    assert_eq!(changes.transparent, 1);
    let expected = [[255; 3], [237, 170, 255], [227, 127, 255], [200, 0, 255]];
    assert_eq!(picture.pixels, expected.concat());

    let grey = GrayAlphaImage::from_fn(2, 1, |x, _| LumaA([10, [0, 255][x as usize]]));
    let (picture, changes) = read(&encoded(grey, ImageFormat::Png)).unwrap();
    assert_eq!((changes.transparent, picture.channels), (1, 1));
    assert_eq!(picture.pixels, [255, 10]);

    let opaque = RgbaImage::from_pixel(1, 1, Rgba([1, 2, 3, 255]));
    let (picture, changes) = read(&encoded(opaque, ImageFormat::Png)).unwrap();
    assert_eq!(changes.transparent, 0);
    assert_eq!(picture.pixels, [1, 2, 3]);
}

#[test]
fn sixteen_bits_are_rounded_to_eight() {
    let values = [0u16, 128, 129, 385, 386, 32_896, 65_406, 65_407, 65_535];
    let rounded = values.map(|value| (f64::from(value) / 257.0).round() as u8);
    assert_eq!(rounded[1..5], [0, 1, 1, 2]);
    let grey = ImageBuffer::<Luma<u16>, _>::from_raw(9, 1, values.to_vec()).unwrap();
    let (picture, changes) = read(&encoded(grey, ImageFormat::Png)).unwrap();
    assert_eq!((picture.pixels, changes.from_16_bit), (rounded.to_vec(), 1));
    let colour = ImageBuffer::<Rgb<u16>, _>::from_raw(3, 1, values.to_vec()).unwrap();
    let (picture, changes) = read(&encoded(colour, ImageFormat::Png)).unwrap();
    assert_eq!((picture.pixels, changes.from_16_bit), (rounded.to_vec(), 1));
    let (_, changes) = read(&encoded(busy(2, 2, true), ImageFormat::Png)).unwrap();
    assert_eq!(changes.from_16_bit, 0);
}

/// `Image.new("CMYK", (8, 8), (0, 128, 255, 51)).save(file, "JPEG", quality=30, optimize=True)` of Pillow 13, which
/// stores the values inverted, as Adobe's programs do.
#[rustfmt::skip]
const CMYK: [u8; 177] = [
    255, 216, 255, 238, 0, 14, 65, 100, 111, 98, 101, 0, 100, 0, 0, 0, 0, 0, 255, 219,
    0, 67, 0, 27, 18, 20, 23, 20, 17, 27, 23, 22, 23, 30, 28, 27, 32, 40, 66, 43,
    40, 37, 37, 40, 81, 58, 61, 48, 66, 96, 85, 101, 100, 95, 85, 93, 91, 106, 120, 153,
    129, 106, 113, 144, 115, 91, 93, 133, 181, 134, 144, 158, 163, 171, 173, 171, 103, 128, 188, 201,
    186, 166, 199, 153, 168, 171, 164, 255, 192, 0, 20, 8, 0, 8, 0, 8, 4, 67, 17, 0,
    77, 17, 0, 89, 17, 0, 75, 17, 0, 255, 196, 0, 22, 0, 1, 1, 1, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 5, 255, 196, 0, 20, 16, 1, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 218, 0, 14, 4,
    67, 0, 77, 0, 89, 0, 75, 0, 0, 63, 0, 76, 134, 90, 239, 255, 217,
];

#[test]
fn colours_of_printers_become_those_of_screens() {
    let (picture, changes) = read(&CMYK).unwrap();
    assert_eq!(changes.from_cmyk, 1);
    // (1 - ink) (1 - black), up to what the format loses.
    for pixel in picture.pixels.chunks(3) {
        let near = pixel.iter().zip([204u8, 102, 0]);
        assert!(
            near.clone()
                .all(|(value, expected)| value.abs_diff(expected) <= 4),
            "{pixel:?}"
        );
    }
}

/// A small file that says it holds very many pixels.
#[test]
fn a_picture_that_would_take_gigabytes_is_refused() {
    let mut jpeg = jpeg_of(&busy(8, 8, true), 80);
    let frame = jpeg.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    let mut png = encoded(busy(8, 8, true), ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let mut crc = flate2::Crc::new();
    crc.update(&png[12..29]);
    png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    for bytes in [jpeg, png] {
        let error = read(&bytes).err().unwrap();
        let message = error.to_string();
        assert!(
            message.contains("at most 268435456 bytes, got 65535x65535 pixels"),
            "{message}"
        );
    }
}

proptest! {
    #[test]
    fn jpeg_of_any_size_is_read_as_image_reads_it(
        width in 1u32..70, height in 1u32..70, quality in 1u8..=100, is_colour: bool, is_flat: bool,
    ) {
        let image = if is_flat { RgbImage::from_pixel(width, height, Rgb([90, 200, 10])).into() } else { busy(width, height, is_colour) };
        let jpeg = jpeg_of(&image, quality);
        let expected = image::load_from_memory(&jpeg).unwrap();
        let (picture, _) = read(&jpeg).unwrap();
        prop_assert_eq!([picture.width, picture.height], [width, height].map(|side| side as usize));
        prop_assert_eq!(picture.pixels, expected.into_bytes());
    }

    #[test]
    fn damaged_bytes_give_a_result_and_no_panic(
        at in 0usize..900, value: u8, is_jpeg: bool,
    ) {
        let image = busy(12, 10, true);
        let mut bytes = if is_jpeg { jpeg_of(&image, 80) } else { encoded(image, ImageFormat::Png) };
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = read(&bytes);
    }
}

//! PNG and JPEG files as viewers show them.

use std::io::Cursor;
use std::path::Path;

use image::codecs::png::PngDecoder;
use image::error::{DecodingError, ImageFormatHint};
use image::metadata::Orientation;
use image::{
    DynamicImage, GrayImage, ImageDecoder as _, ImageError, ImageFormat, Limits, RgbImage,
};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::TaskError;

/// Bytes that the pixels of a file may take: 89 million of 3 bytes. With what decoders and conversions need beside
/// them, a file takes less than 1 GiB.
const MOST: u64 = 1 << 28;

/// A picture of 8 bits per channel, grey or red, green and blue, and what was done for that.
pub(super) struct Picture {
    pub image: DynamicImage,
    /// Turned or mirrored, as its EXIF data say.
    pub turned: bool,
    /// Some of its pixels were not opaque. They lie on white.
    pub transparent: bool,
    /// It had 16 bits per channel, which were rounded.
    pub deep: bool,
    /// It was in the colours of printers, CMYK.
    pub printed: bool,
}

/// Reads a picture. The content decides on the format, not the name.
pub(super) fn open(path: &Path) -> Result<Picture, TaskError> {
    let bytes = std::fs::read(path).map_err(TaskError::read(path))?;
    let format = image::guess_format(&bytes).map_err(unreadable(path))?;
    match format {
        ImageFormat::Jpeg => jpeg(path, bytes),
        ImageFormat::Png => png(path, &bytes),
        other => {
            let hint = ImageFormatHint::Exact(other);
            Err(unreadable(path)(ImageError::Unsupported(hint.into())))
        }
    }
}

fn unreadable(path: &Path) -> impl Fn(ImageError) -> TaskError {
    move |source| TaskError::ImageFile {
        path: path.into(),
        source,
    }
}

fn decoding(format: ImageFormat, problem: impl std::fmt::Display) -> ImageError {
    let hint = ImageFormatHint::Exact(format);
    ImageError::Decoding(DecodingError::new(hint, problem.to_string()))
}

const CUT: &str = "the file ends before the picture does";

fn check_size(path: &Path, [height, width]: [usize; 2], bytes: u64) -> Result<(), TaskError> {
    if bytes <= MOST {
        Ok(())
    } else {
        Err(TaskError::ImageTooLarge {
            path: path.into(),
            got: [height, width],
            bytes,
            most: MOST,
        })
    }
}

/// `image` decodes JPEG with the same library, but has it fill in what is missing or damaged.
fn jpeg(path: &Path, mut bytes: Vec<u8>) -> Result<Picture, TaskError> {
    let refuse =
        |problem: &dyn std::fmt::Display| unreadable(path)(decoding(ImageFormat::Jpeg, problem));
    let end = jpeg_end(&bytes).ok_or_else(|| refuse(&CUT))?;
    // The decoder reads zeros after the end, which are pixels. Bits that are all ones are none, and an error: a picture
    // that is whole asks for neither.
    bytes.truncate(end);
    bytes.extend([0xff, 0x00].repeat(16));
    bytes.extend([0xff, 0xd9]);

    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&bytes), options);
    decoder.decode_headers().map_err(|error| refuse(&error))?;
    let from = decoder.input_colorspace();
    let (width, height) = decoder.dimensions().ok_or_else(|| refuse(&CUT))?;
    let (to, channels) = match from {
        Some(ColorSpace::Luma) => (ColorSpace::Luma, 1),
        _ => (ColorSpace::RGB, 3),
    };
    check_size(path, [height, width], (width * height * channels) as u64)?;
    decoder.set_options(options.jpeg_set_out_colorspace(to));
    let pixels = decoder.decode().map_err(|error| refuse(&error))?;
    let (width, height) = (width as u32, height as u32);
    let image = match to {
        ColorSpace::Luma => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
    };
    let image = image.ok_or_else(|| refuse(&CUT))?;
    let printed = matches!(from, Some(ColorSpace::CMYK | ColorSpace::YCCK));
    Ok(Picture {
        printed,
        ..shown(image, decoder.exif().map(Vec::as_slice))
    })
}

/// Where the marker of the end of the first picture in a JPEG file is, if there is one. Files may go on after it.
fn jpeg_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        let is_marker = |pair: &[u8; 2]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff);
        at += bytes.get(at..)?.array_windows().position(is_marker)?;
        at += match bytes[at + 1] {
            0xd9 => return Some(at),
            // These have no length: TEM, RST0 to RST7 and SOI.
            0x01 | 0xd0..=0xd8 => 2,
            _ => 2 + usize::from(u16::from_be_bytes(*bytes.get(at + 2..)?.first_chunk()?)),
        };
    }
}

fn png(path: &Path, bytes: &[u8]) -> Result<Picture, TaskError> {
    let refuse = unreadable(path);
    let exif = png_exif(bytes).ok_or_else(|| refuse(decoding(ImageFormat::Png, CUT)))?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST);
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(&refuse)?;
    let (width, height) = decoder.dimensions();
    let size = [height as usize, width as usize];
    check_size(path, size, decoder.total_bytes())?;
    let image = DynamicImage::from_decoder(decoder).map_err(&refuse)?;
    Ok(shown(image, exif))
}

/// The EXIF data of a PNG file, before or after its pixels; `None` outside if the file ends before its last chunk does.
fn png_exif(bytes: &[u8]) -> Option<Option<&[u8]>> {
    let (mut rest, mut exif) = (bytes.get(8..)?, None);
    loop {
        let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        let (chunk, behind) = rest.split_at_checked(length.checked_add(12)?)?;
        match &chunk[4..8] {
            b"IEND" => return Some(exif),
            b"eXIf" => exif = Some(&chunk[8..8 + length]),
            _ => {}
        }
        rest = behind;
    }
}

/// A decoded picture as a viewer shows it.
fn shown(image: DynamicImage, exif: Option<&[u8]>) -> Picture {
    let color = image.color();
    let deep = color.bytes_per_pixel() > color.channel_count();
    let mut transparent = false;
    let mut on_white = |value: u8, alpha: u8| {
        transparent |= alpha < 255;
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let (width, height) = (image.width(), image.height());
    let mut image = match (color.has_color(), color.has_alpha()) {
        (false, false) => image.into_luma8().into(),
        (true, false) => image.into_rgb8().into(),
        (false, true) => {
            let from = image.into_luma_alpha8();
            GrayImage::from_fn(width, height, |x, y| {
                let [value, alpha] = from.get_pixel(x, y).0;
                [on_white(value, alpha)].into()
            })
            .into()
        }
        (true, true) => {
            let from = image.into_rgba8();
            RgbImage::from_fn(width, height, |x, y| {
                let [red, green, blue, alpha] = from.get_pixel(x, y).0;
                [red, green, blue]
                    .map(|value| on_white(value, alpha))
                    .into()
            })
            .into()
        }
    };
    let turn = exif.and_then(Orientation::from_exif_chunk);
    let turn = turn.unwrap_or(Orientation::NoTransforms);
    DynamicImage::apply_orientation(&mut image, turn);
    Picture {
        image,
        turned: turn != Orientation::NoTransforms,
        transparent,
        deep,
        printed: false,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use image::codecs::jpeg::JpegEncoder;
    use image::{GrayAlphaImage, ImageBuffer, Luma, LumaA, Rgb, Rgba, RgbaImage};
    use proptest::prelude::*;

    use super::*;

    fn write(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture");
        fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn read(bytes: &[u8]) -> Result<Picture, TaskError> {
        let (_folder, path) = write(bytes);
        open(&path)
    }

    fn pixels(bytes: &[u8]) -> Vec<u8> {
        read(bytes).unwrap().image.into_bytes()
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
                let picture = read(&bytes).unwrap();
                assert_eq!(picture.turned, orientation != 1);
                let image = picture.image.into_luma8();
                let (right, low) = (image.width() - 1, image.height() - 1);
                let is_upright = orientation < 5;
                assert_eq!(right > low, is_upright, "orientation {orientation}");
                let at = [(0, 0), (right, 0), (0, low), (right, low)];
                let found = at.map(|(x, y)| (f32::from(image.get_pixel(x, y).0[0]) / 50.0).round());
                assert_eq!(found, corners.map(|corner| corner as f32), "{orientation}");
            }
        }
        assert!(!read(&jpeg).unwrap().turned && !read(&png).unwrap().turned);
        assert!(!read(&jpeg_turned(&jpeg, 9)).unwrap().turned);
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
                    assert!(matches!(error, TaskError::ImageFile { .. }), "{error:?}");
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
                if let Ok(picture) = read(&early) {
                    assert_eq!(picture.image.into_bytes(), whole, "{end} of {}", jpeg.len());
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
        let picture = read(&encoded(colour, ImageFormat::Png)).unwrap();
        assert!(picture.transparent);
        let expected = [[255; 3], [237, 170, 255], [227, 127, 255], [200, 0, 255]];
        assert_eq!(picture.image.into_bytes(), expected.concat());

        let grey = GrayAlphaImage::from_fn(2, 1, |x, _| LumaA([10, [0, 255][x as usize]]));
        let picture = read(&encoded(grey, ImageFormat::Png)).unwrap();
        assert!(picture.transparent);
        assert_eq!(
            picture.image,
            GrayImage::from_raw(2, 1, vec![255, 10]).unwrap().into()
        );

        let opaque = RgbaImage::from_pixel(1, 1, Rgba([1, 2, 3, 255]));
        let picture = read(&encoded(opaque, ImageFormat::Png)).unwrap();
        assert!(!picture.transparent);
        assert_eq!(picture.image.into_bytes(), [1, 2, 3]);
    }

    #[test]
    fn sixteen_bits_are_rounded_to_eight() {
        let values = [0u16, 128, 129, 385, 386, 32_896, 65_406, 65_407, 65_535];
        let rounded = values.map(|value| (f64::from(value) / 257.0).round() as u8);
        assert_eq!(rounded[1..5], [0, 1, 1, 2]);
        let grey = ImageBuffer::<Luma<u16>, _>::from_raw(9, 1, values.to_vec()).unwrap();
        let picture = read(&encoded(grey, ImageFormat::Png)).unwrap();
        assert!(picture.deep);
        assert_eq!(picture.image.into_bytes(), rounded);
        let colour = ImageBuffer::<Rgb<u16>, _>::from_raw(3, 1, values.to_vec()).unwrap();
        let picture = read(&encoded(colour, ImageFormat::Png)).unwrap();
        assert!(picture.deep);
        assert_eq!(picture.image.into_bytes(), rounded);
        assert!(
            !read(&encoded(busy(2, 2, true), ImageFormat::Png))
                .unwrap()
                .deep
        );
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
        let picture = read(&CMYK).unwrap();
        assert!(picture.printed);
        // (1 - ink) (1 - black), up to what the format loses.
        for pixel in picture.image.into_rgb8().pixels() {
            let near = pixel.0.iter().zip([204u8, 102, 0]);
            assert!(
                near.clone()
                    .all(|(value, expected)| value.abs_diff(expected) <= 4),
                "{pixel:?}"
            );
        }
    }

    #[test]
    fn the_end_of_a_jpeg_is_behind_segments_fill_bytes_and_restarts() {
        let segment = [0xff, 0xfe, 0, 4, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0, 2, 7, 0xff, 0x00, 0xd9, 0xff, 0xd0, 8, 0xff];
        let file = [
            &[0xff, 0xd8][..],
            &segment,
            &scan,
            &[0xff, 0xd9, 1, 2, 0xff, 0xd9],
        ]
        .concat();
        assert_eq!(jpeg_end(&file), Some(20));
        for end in 0..22 {
            assert_eq!(jpeg_end(&file[..end]), None, "{end}");
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
            assert!(
                matches!(error, TaskError::ImageTooLarge { .. }),
                "{error:?}"
            );
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
            prop_assert_eq!(read(&jpeg).unwrap().image, expected);
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
}

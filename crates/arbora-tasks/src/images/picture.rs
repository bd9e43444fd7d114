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
    pub rotated: bool,
    /// Some of its pixels were not opaque. They lie on white.
    pub transparent: bool,
    /// It had 16 bits per channel, which were rounded.
    pub from_16_bit: bool,
    /// It was in the colours of printers, CMYK.
    pub from_cmyk: bool,
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
    move |error| TaskError::file(path, format!("not a readable PNG or JPEG image: {error}"))
}

fn decoding(format: ImageFormat, problem: impl std::fmt::Display) -> ImageError {
    let hint = ImageFormatHint::Exact(format);
    ImageError::Decoding(DecodingError::new(hint, problem.to_string()))
}

const CUT: &str = "the file ends before the picture does";

fn check_size(path: &Path, [height, width]: [usize; 2], bytes: u64) -> Result<(), TaskError> {
    if bytes <= MOST {
        return Ok(());
    }
    let problem = format!(
        "expected an image of at most {MOST} bytes, got {height}x{width} pixels (height x width), {bytes} bytes"
    );
    Err(TaskError::file(path, problem))
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
    let image = opaque(width as u32, height as u32, channels, pixels);
    let image = image.ok_or_else(|| refuse(&CUT))?;
    let from_cmyk = matches!(from, Some(ColorSpace::CMYK | ColorSpace::YCCK));
    Ok(Picture {
        from_cmyk,
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

/// A picture from its bytes: grey of one channel, colour of three.
fn opaque(width: u32, height: u32, channels: usize, bytes: Vec<u8>) -> Option<DynamicImage> {
    if channels == 1 {
        GrayImage::from_raw(width, height, bytes).map(DynamicImage::from)
    } else {
        RgbImage::from_raw(width, height, bytes).map(DynamicImage::from)
    }
}

/// A decoded picture as a viewer shows it.
fn shown(image: DynamicImage, exif: Option<&[u8]>) -> Picture {
    let color = image.color();
    let from_16_bit = color.bytes_per_pixel() > color.channel_count();
    let mut transparent = false;
    let (width, height) = (image.width(), image.height());
    let channels = if color.has_color() { 3 } else { 1 };
    let mut bytes = match (color.has_color(), color.has_alpha()) {
        (false, false) => image.into_luma8().into_raw(),
        (true, false) => image.into_rgb8().into_raw(),
        (false, true) => image.into_luma_alpha8().into_raw(),
        (true, true) => image.into_rgba8().into_raw(),
    };
    if color.has_alpha() {
        let on_white = bytes.chunks_exact(channels + 1).flat_map(|pixel| {
            let alpha = u32::from(pixel[channels]);
            transparent |= alpha < 255;
            let mixed =
                move |value: u8| (u32::from(value) * alpha + 255 * (255 - alpha) + 127) / 255;
            pixel[..channels]
                .iter()
                .map(move |&value| mixed(value) as u8)
        });
        bytes = on_white.collect();
    }
    let mut image = opaque(width, height, channels, bytes).expect("a value per channel and pixel");
    let turn = exif.and_then(Orientation::from_exif_chunk);
    let turn = turn.unwrap_or(Orientation::NoTransforms);
    DynamicImage::apply_orientation(&mut image, turn);
    Picture {
        image,
        rotated: turn != Orientation::NoTransforms,
        transparent,
        from_16_bit,
        from_cmyk: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

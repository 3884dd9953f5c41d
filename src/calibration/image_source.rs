//! An image of the calibration data, not decoded: where its bytes are, and the size that its header names.

use std::borrow::Cow;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs, io};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT;
use image::metadata::Orientation;
use image::{ImageDecoder, ImageReader};

/// A PNG, JPEG or WebP image, as a file or as the bytes of one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum ImageSource {
    File(PathBuf),
    Bytes(Arc<[u8]>),
}

impl ImageSource {
    /// What a .jsonl file calls an image: a data URL, or a path that [`Self::file`] finds in `folder`. The error says
    /// what is wrong with it.
    pub(super) fn parse(place: &str, folder: &Path) -> Result<Self, String> {
        if place.starts_with("data:") {
            return Self::base64(place);
        }
        if place.starts_with("http://") || place.starts_with("https://") {
            return Err(format!(
                "{place} is on the network, where nothing is read; download it and name the file"
            ));
        }
        Self::file(folder.join(place.strip_prefix("file://").unwrap_or(place)))
    }

    /// The file at `path`, which must be there.
    pub(super) fn file(path: PathBuf) -> Result<Self, String> {
        if path.is_file() {
            Ok(Self::File(path))
        } else {
            let path = path.display();
            Err(format!(
                "no image {path}; paths start from the .jsonl file's folder"
            ))
        }
    }

    /// Bytes in base64, with or without the head of a data URL.
    pub(super) fn base64(text: &str) -> Result<Self, String> {
        let data = match text.strip_prefix("data:") {
            None => text,
            Some(url) => {
                let found = url.split_once(";base64,");
                found.ok_or("a data URL without `;base64,`")?.1
            }
        };
        let bytes = STANDARD_PAD_INDIFFERENT.decode(data.trim());
        let bytes = bytes.map_err(|error| format!("an image that is no base64: {error}"))?;
        Ok(Self::Bytes(bytes.into()))
    }

    /// The bytes of the image file.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn read(&self) -> io::Result<Cow<'_, [u8]>> {
        match self {
            Self::File(path) => Ok(fs::read(path)?.into()),
            Self::Bytes(bytes) => Ok((&**bytes).into()),
        }
    }

    /// Width and height in pixels as the image is looked at, that is after the turn that its EXIF orientation asks for.
    /// Reads the header only.
    pub(super) fn size(&self) -> Result<(u32, u32), String> {
        let failed =
            |error: &dyn fmt::Display| format!("{self}: {error}; give a PNG, JPEG or WebP image");
        let bytes = self.read().map_err(|error| failed(&error))?;
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|error| failed(&error))?;
        reader.no_limits();
        let mut decoder = reader.into_decoder().map_err(|error| failed(&error))?;
        let (width, height) = decoder.dimensions();
        let turned = [
            Orientation::Rotate90,
            Orientation::Rotate270,
            Orientation::Rotate90FlipH,
            Orientation::Rotate270FlipH,
        ];
        let orientation = decoder.orientation().map_err(|error| failed(&error))?;
        Ok(if turned.contains(&orientation) {
            (height, width)
        } else {
            (width, height)
        })
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Bytes(bytes) => write!(f, "an image of {} bytes", bytes.len()),
        }
    }
}

impl fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(super) mod testing {
    use super::*;

    /// A PNG of one colour.
    pub fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let image = image::GrayImage::new(width, height);
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A JPEG of `width` by `height` whose EXIF says how it is turned.
    fn jpeg(width: u32, height: u32, orientation: u8) -> Vec<u8> {
        let mut plain = Cursor::new(Vec::new());
        let image = image::GrayImage::new(width, height);
        image
            .write_to(&mut plain, image::ImageFormat::Jpeg)
            .unwrap();
        let plain = plain.into_inner();
        // APP1: "Exif", a TIFF header, and one directory of one entry (0x0112, SHORT, 1 value).
        let mut exif = vec![0xff, 0xe1, 0, 34];
        exif.extend(b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0");
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        [&plain[..2], &exif, &plain[2..]].concat()
    }

    #[test]
    fn a_size_is_that_of_the_turned_image() {
        let size = |bytes: Vec<u8>| ImageSource::Bytes(bytes.into()).size().unwrap();
        assert_eq!(size(testing::png(7, 3)), (7, 3));
        for orientation in 1..=8 {
            let expected = if orientation < 5 { (16, 8) } else { (8, 16) };
            assert_eq!(size(jpeg(16, 8, orientation)), expected, "{orientation}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.png"), "GIF89a").unwrap();
        let error = ImageSource::parse("x.png", folder.path()).unwrap().size();
        let error = error.unwrap_err();
        assert!(
            error.contains("x.png: ") && error.contains("give a PNG"),
            "{error}"
        );
    }

    #[test]
    fn places_are_paths_and_data_urls() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.png"), "abc").unwrap();
        let parse = |place: &str| ImageSource::parse(place, folder.path());
        let file = folder.path().join("x.png");
        assert_eq!(parse("x.png"), Ok(ImageSource::File(file.clone())));
        let absolute = format!("file://{}", file.display());
        assert_eq!(parse(&absolute), Ok(ImageSource::File(file)));
        let bytes = ImageSource::Bytes(b"abc".as_slice().into());
        assert_eq!(parse("data:image/png;base64,YWJj"), Ok(bytes.clone()));
        assert_eq!(ImageSource::base64(" YWJj\n"), Ok(bytes));
        for (place, reason) in [
            ("y.png", "no image "),
            ("https://example.org/x.png", "download it"),
            ("data:image/png,abc", "without `;base64,`"),
            ("data:image/png;base64,Y!Jj", "no base64: Invalid symbol"),
        ] {
            let error = parse(place).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}

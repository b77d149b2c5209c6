//! Checks every byte of a compressed directory, and how far it is from the original.

use std::path::Path;

use serde::Serialize;
use tch::Tensor;

use super::compress::Progress;
use super::container::{compressed_paths, is_buffer, is_byte_bias, read_buffers, stored_bytes};
use super::Reader;
use crate::codec::{decompress as decompress_tensor, raw_bytes, Matrix};
use crate::error::{Error, Result};
use crate::nn::Bias;
use crate::quantize::Distortion;

/// What a check found.
///
/// Made by [`verify`](verify()) of what [`compress`](super::compress()) wrote; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Nothing is wrong.
    pub ok: bool,
    /// Tensors checked, the bad one included.
    pub tensors_checked: usize,
    /// Largest absolute error against the original, if that was given.
    pub max_abs_error: Option<f64>,
    /// Signal-to-noise ratio against the original in dB, if that was given; none where they are equal.
    pub snr_db: Option<f64>,
    /// The first tensor that is damaged or does not belong to the original; none where it is a file beside the tensors.
    pub first_bad_tensor: Option<String>,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// Decodes every tensor of `dir`, checks all checksums, of the files beside the tensors too, and lane ends, and, with `against`, compares with the original
/// model directory: shapes, dtypes, tensors stored as they are or in an exact layout bit for bit.
///
/// As what [`compress`](super::compress()) wrote; see its example.
///
/// # Errors
/// Only where a directory cannot be opened at all; what is wrong inside is in the report.
pub fn verify(
    dir: impl AsRef<Path>,
    against: Option<&Path>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<VerifyReport> {
    let reader = Reader::open(dir)?;
    let original = against.map(Reader::open).transpose()?;
    let mut check = Check { reader: &reader, original: original.as_ref(), distortion: Distortion::default() };
    let mut report = VerifyReport {
        ok: true,
        tensors_checked: 0,
        max_abs_error: None,
        snr_db: None,
        first_bad_tensor: None,
        error: None,
    };
    if let Err(error) = reader.check_files() {
        report.ok = false;
        report.error = Some(error.to_string());
        return Ok(report);
    }
    let plain = reader.names().filter(|name| !is_buffer(name)).map(str::to_owned);
    let names: Vec<String> = compressed_paths(&reader).into_iter().chain(plain).collect();
    let total_bytes = names.iter().map(|name| stored_bytes(&reader, name)).sum();
    let mut done_bytes = 0;
    for name in &names {
        report.tensors_checked += 1;
        if let Err(error) = check.tensor(name) {
            report.ok = false;
            report.first_bad_tensor = Some(name.clone());
            report.error = Some(error.to_string());
            return Ok(report);
        }
        done_bytes += stored_bytes(&reader, name);
        progress(Progress { stage: "verify", tensor_path: name, done_bytes, total_bytes });
    }
    if let Some(missing) = original.as_ref().and_then(|original| missing(original, &names)) {
        report.ok = false;
        report.error = Some(format!("{missing}: is in the original, but not here"));
        report.first_bad_tensor = Some(missing);
    }
    if original.is_some() {
        report.max_abs_error = Some(check.distortion.max_error);
        report.snr_db = Some(check.distortion.snr_db()).filter(|snr| snr.is_finite());
    }
    Ok(report)
}

fn missing(original: &Reader, names: &[String]) -> Option<String> {
    original.names().find(|name| !names.iter().any(|known| known == name)).map(str::to_owned)
}

struct Check<'a> {
    reader: &'a Reader,
    original: Option<&'a Reader>,
    distortion: Distortion,
}

impl Check<'_> {
    fn tensor(&mut self, name: &str) -> Result<()> {
        if self.reader.info(name).is_some() {
            return self.plain(name);
        }
        let buffers = read_buffers(self.reader, name)?;
        let tensor = decompress_tensor(&buffers, name)?;
        let Some(original) = self.original else { return Ok(()) };
        if !buffers.view(name)?.header.layout.is_grid() {
            return check_exact(name, &tensor, &original.read(name)?);
        }
        let (got, want) = (Matrix::of(name, &tensor)?, Matrix::of(name, &original.read(name)?)?);
        if got.shape != want.shape || got.dtype != want.dtype {
            return Err(Error::corrupt(
                name,
                format!("is {:?} {:?}, the original {:?} {:?}", got.dtype, got.shape, want.dtype, want.shape),
            ));
        }
        let mut own = Distortion::default();
        for (got, want) in got.weights.iter().zip(&want.weights) {
            let error = f64::from(*got) - f64::from(*want);
            own.signal += f64::from(*want) * f64::from(*want);
            own.noise += error * error;
            own.max_error = own.max_error.max(error.abs());
        }
        // Quantization to 2.5 bits keeps 12 dB; a matrix of another layer has none in common. A NaN is no match either.
        let matches = own.noise <= own.signal || own.signal == 0.0;
        if !matches {
            return Err(Error::corrupt(
                name,
                format!(
                    "differs from the original by more than its size (SNR {:.1} dB): payloads mixed up?",
                    own.snr_db()
                ),
            ));
        }
        self.distortion = self.distortion.with(own);
        Ok(())
    }

    /// A tensor stored as it is: the reader compares its checksum.
    fn plain(&self, name: &str) -> Result<()> {
        let bytes = self.reader.read_bytes(name)?;
        let is_bias = is_byte_bias(self.reader, name);
        let bias = if is_bias { Some(Bias::from_bytes(name, &bytes)?) } else { None };
        let Some(original) = self.original else { return Ok(()) };
        let same = match bias {
            Some(_) => bytes == Bias::byte_vec(&original.read(name)?).map_err(|error| error.about(name))?,
            None => {
                let kind = |reader: &Reader| reader.info(name).map(|info| (info.dtype, info.shape.clone()));
                kind(self.reader) == kind(original) && bytes == original.read_bytes(name)?
            }
        };
        if same {
            Ok(())
        } else {
            Err(Error::corrupt(name, "differs from the original, though it is stored as it is"))
        }
    }
}

/// Compares bit for bit: a NaN is no number, but has bits.
fn check_exact(name: &str, got: &Tensor, want: &Tensor) -> Result<()> {
    let same = got.kind() == want.kind() && got.size() == want.size();
    if same && raw_bytes(got, name)? == raw_bytes(want, name)? {
        return Ok(());
    }
    Err(Error::corrupt(name, "differs from the original, though its layout is exact"))
}

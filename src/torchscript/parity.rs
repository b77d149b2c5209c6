//! How far the outputs of two modules are apart.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tch::{IValue, Kind, Tensor};

use super::module::Module;
use crate::error::{Error, Result, TorchContext};

/// The arguments of one call, in order.
///
/// What [`compare`] takes or gives; see its example.
#[derive(Debug)]
pub struct InputSet {
    /// What the file calls it; empty where it holds one set only.
    pub name: String,
    /// The arguments.
    pub arguments: Vec<Tensor>,
}

impl InputSet {
    /// Reads a safetensors file: `arg0`, `arg1`, ... are the arguments of a call; `NAME/arg0`, ... those of several. Other tensors
    /// are not looked at.
    ///
    /// # Errors
    /// A file that is not safetensors or holds no arguments, by path; an argument that is missing, by name.
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<Self>> {
        let path = path.as_ref();
        let subject = path.display().to_string();
        if !path.is_file() {
            return Err(Error::io(path, std::io::Error::from(std::io::ErrorKind::NotFound)));
        }
        let tensors = Tensor::read_safetensors(path)
            .map_err(|e| Error::corrupt(&*subject, "is not a safetensors file").with_source(e))?;
        let mut sets: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
        for (name, tensor) in tensors {
            let (set, argument) = name.rsplit_once('/').unwrap_or(("", &name));
            let Some(index) = argument.strip_prefix("arg").and_then(|index| index.parse().ok()) else {
                continue;
            };
            sets.entry(set.to_owned()).or_default().insert(index, tensor);
        }
        if sets.is_empty() {
            return Err(Error::invalid(
                subject,
                "holds no tensor arg0 (arguments are arg0, arg1, ... or NAME/arg0, ...)",
            ));
        }
        sets.into_iter().map(|(name, arguments)| Self::of(name, arguments, &subject)).collect()
    }

    fn of(name: String, arguments: BTreeMap<usize, Tensor>, subject: &str) -> Result<Self> {
        match arguments.keys().enumerate().find(|(wanted, index)| wanted != *index) {
            Some((wanted, _)) => Err(Error::invalid(subject, format!("{name}/arg{wanted} is missing"))),
            None => Ok(Self { name, arguments: arguments.into_values().collect() }),
        }
    }
}

/// One tensor of an output.
///
/// What [`compare`] takes or gives; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct OutputParity {
    /// The set of inputs, and where in the result the tensor is: `out`, `out.0`, `out.logits`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Largest absolute difference.
    pub max_difference: f64,
    /// Root mean square of the differences over that of the reference.
    pub relative_error: f64,
    /// Part of the rows (all but the last dimension) whose largest element is at the same place; none for single numbers.
    pub same_top: Option<f64>,
    /// Mean of `KL(reference || other)` over the rows as logits, nats; none where the last dimension has one element or the
    /// tensor is not of floats.
    pub mean_divergence: Option<f64>,
}

/// Two modules on the same inputs.
///
/// What [`compare`] takes or gives; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct TorchscriptParity {
    /// All tensors of all outputs.
    pub outputs: Vec<OutputParity>,
}

impl TorchscriptParity {
    /// The largest relative error.
    pub fn worst_relative_error(&self) -> f64 {
        self.outputs.iter().map(|output| output.relative_error).fold(0.0, f64::max)
    }

    /// An error where the mean divergence of an output is above `most` nats.
    ///
    /// # Errors
    /// `Corrupt`, naming the output.
    pub fn check(&self, most: f64) -> Result<()> {
        // NaN is above everything.
        let above = |divergence: f64| divergence.is_nan() || divergence > most;
        match self.outputs.iter().find(|output| output.mean_divergence.is_some_and(above)) {
            None => Ok(()),
            Some(output) => {
                let mean = output.mean_divergence.unwrap_or_default();
                Err(Error::corrupt(
                    &*output.name,
                    format!("KL mean is {mean:.4} nats, wanted at most {most}"),
                ))
            }
        }
    }

    /// Whether all outputs are the same, element by element.
    pub fn is_exact(&self) -> bool {
        self.outputs.iter().all(|output| output.max_difference == 0.0)
    }
}

/// Runs `forward` of both modules on every set of inputs.
///
/// ```no_run
/// // Needs two modules; that of `patch_linears` makes them.
/// use codecllm::torchscript::{compare, InputSet, Module};
/// use tch::Device;
/// let [dense, patched] = ["model.pt", "patched.pt"].map(|file| Module::load(file, Device::Cpu));
/// let parity = compare(&dense?, &patched?, &InputSet::read("inputs.safetensors")?)?;
/// for output in &parity.outputs {
///     println!("{} {:?}: {}", output.name, output.shape, output.relative_error);
/// }
/// println!("{} at most, {}", parity.worst_relative_error(), if parity.is_exact() { "exact" } else { "close" });
/// parity.check(0.01)?; // nats
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// What the modules report; results of different structure or shape, by name.
pub fn compare(reference: &Module, other: &Module, inputs: &[InputSet]) -> Result<TorchscriptParity> {
    let mut outputs = Vec::new();
    for set in inputs {
        let arguments = || -> Vec<IValue> {
            // Copies: a module may write into its arguments.
            set.arguments.iter().map(|tensor| IValue::Tensor(tensor.copy())).collect()
        };
        let [reference, other] =
            [reference, other].map(|module| tch::no_grad(|| module.forward_is(&arguments())));
        let name = if set.name.is_empty() { "out".to_owned() } else { format!("{}/out", set.name) };
        walk(&name, &reference?, &other?, &mut outputs)?;
    }
    Ok(TorchscriptParity { outputs })
}

fn walk(name: &str, reference: &IValue, other: &IValue, outputs: &mut Vec<OutputParity>) -> Result<()> {
    match (reference, other) {
        (IValue::Tensor(reference), IValue::Tensor(other)) => {
            outputs.push(compare_tensors(name, reference, other)?);
            Ok(())
        }
        (IValue::TensorList(left), IValue::TensorList(right)) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                outputs.push(compare_tensors(&format!("{name}.{index}"), left, right)?);
            }
            Ok(())
        }
        (IValue::Tuple(left), IValue::Tuple(right))
        | (IValue::GenericList(left), IValue::GenericList(right))
            if left.len() == right.len() =>
        {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                walk(&format!("{name}.{index}"), left, right, outputs)?;
            }
            Ok(())
        }
        (IValue::GenericDict(left), IValue::GenericDict(right)) if left.len() == right.len() => {
            for ((key, left), (other_key, right)) in left.iter().zip(right) {
                if key != other_key {
                    return Err(Error::invalid(name, format!("has key {other_key:?}, wanted {key:?}")));
                }
                let key = if let IValue::String(text) = key { text.clone() } else { format!("{key:?}") };
                walk(&format!("{name}.{key}"), left, right, outputs)?;
            }
            Ok(())
        }
        (left, right) if left == right => Ok(()),
        (left, right) => Err(Error::invalid(name, format!("is {right:?}, wanted {left:?}"))),
    }
}

fn compare_tensors(name: &str, reference: &Tensor, other: &Tensor) -> Result<OutputParity> {
    let shape = reference.size();
    if shape != other.size() || reference.kind() != other.kind() {
        let (kind, wanted) = (other.kind(), reference.kind());
        let message = format!("is {kind:?} {:?}, wanted {wanted:?} {shape:?}", other.size());
        return Err(Error::invalid(name, message));
    }
    let double = |tensor: &Tensor| tensor.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double);
    let (left, right) = (double(reference).about(name)?, double(other).about(name)?);
    let last = shape.last().copied().unwrap_or(1);
    let is_logits = reference.is_floating_point() && last > 1 && left.numel() > 0;
    let rows = |tensor: &Tensor| tensor.f_reshape([-1, last]).about(name);
    let mut same_top = None;
    let mut mean_divergence = None;
    if is_logits {
        let (left, right) = (rows(&left)?, rows(&right)?);
        let same = left.argmax(-1, false).eq_tensor(&right.argmax(-1, false));
        same_top = Some(same.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]));
        let [p, q] = [left, right].map(|logits| logits.log_softmax(-1, Kind::Double));
        let divergence = (p.exp() * (&p - q)).sum_dim_intlist(-1i64, false, Kind::Double);
        let mean = divergence.mean(Kind::Double).double_value(&[]);
        // A distribution with itself is zero; rounding may leave less. (`max` would hide a NaN.)
        mean_divergence = Some(if mean < 0.0 { 0.0 } else { mean });
    }
    let difference = differences(&left, &right);
    let rms = |tensor: &Tensor| tensor.square().mean(Kind::Double).sqrt().double_value(&[]);
    let max = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
    let empty = difference.numel() == 0;
    let max_difference = if empty { 0.0 } else { max(&difference) };
    let relative_error = if max_difference == 0.0 { 0.0 } else { rms(&difference) / rms(&left) };
    Ok(OutputParity {
        name: name.to_owned(),
        shape,
        max_difference,
        relative_error,
        same_top,
        mean_divergence,
    })
}

/// `right - left`, zero where both are the same infinity or both NaN.
fn differences(left: &Tensor, right: &Tensor) -> Tensor {
    let same = left.eq_tensor(right).logical_or(&left.isnan().logical_and(&right.isnan()));
    (right - left).masked_fill(&same, 0.0)
}

//! Compresses the linears of one's own `tch::nn` model, which is no Llama: a small network that tells two spirals apart is trained,
//! its linears are exchanged for compressed ones, and the accuracy is measured before and after.
//!
//! ```text
//! cargo run --release --example patch_module
//!
//! dense:    98.9 % of 2000 points right, 0.53 MB
//! int8:     98.9 % of 2000 points right, 0.13 MB
//! 4 bits:   98.8 % of 2000 points right, 0.07 MB
//! ```

use anyhow::Result;
use codecllm::codec::{CompressedTensor, EncodeOptions, Matrix, RateSample, StepRule};
use codecllm::nn::CompressedLinear;
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};

const WIDTH: i64 = 256;
const POINTS: i64 = 2000;
const STEPS: usize = 400;

/// Two hidden layers. What each of them is, the network does not know: anything with `forward`.
#[derive(Debug)]
struct Network {
    layers: Vec<Box<dyn Module>>,
}

impl Module for Network {
    fn forward(&self, x: &Tensor) -> Tensor {
        let (last, hidden) = self.layers.split_last().expect("a network has layers");
        last.forward(&hidden.iter().fold(x.shallow_clone(), |x, layer| layer.forward(&x).relu()))
    }
}

fn main() -> Result<()> {
    tch::manual_seed(7);
    tch::set_num_threads(1);
    let vs = nn::VarStore::new(Device::Cpu);
    let linears = dense_linears(&vs.root());
    train(&vs, &linears)?;
    let bytes = linears.iter().map(|linear| 4 * linear.ws.numel()).sum();
    report("dense", &network_of(&linears), bytes);
    for (name, bits) in [("int8", None), ("4 bits", Some(4.0))] {
        let vs = nn::VarStore::new(Device::Cpu);
        let (patched, bytes) = patch(&vs.root(), &linears, bits)?;
        report(name, &patched, bytes);
    }
    Ok(())
}

fn dense_linears(vs: &nn::Path<'_>) -> Vec<nn::Linear> {
    let widths = [2, WIDTH, WIDTH, WIDTH, 2];
    let linear = |at: usize| nn::linear(vs / at, widths[at], widths[at + 1], Default::default());
    (0..widths.len() - 1).map(linear).collect()
}

fn network_of(linears: &[nn::Linear]) -> Network {
    let layer = |linear: &nn::Linear| -> Box<dyn Module> {
        let (weight, bias) = (linear.ws.shallow_clone(), linear.bs.as_ref().map(Tensor::shallow_clone));
        Box::new(nn::Linear { ws: weight, bs: bias })
    };
    Network { layers: linears.iter().map(layer).collect() }
}

/// The same network with each weight compressed, registered under its name in a VarStore of its own, and the bytes of all weights.
fn patch(vs: &nn::Path<'_>, linears: &[nn::Linear], bits: Option<f64>) -> Result<(Network, usize)> {
    let (mut layers, mut bytes) = (Vec::<Box<dyn Module>>::new(), 0);
    for (index, linear) in linears.iter().enumerate() {
        let path = format!("{index}.weight");
        let weight = linear.ws.detach();
        let matrix = Matrix::of(&path, &weight)?;
        // The two small ones stay as they are on a fine grid: a budget of bits is for matrices that fill tiles.
        let rule = match bits.filter(|_| weight.numel() > 10_000) {
            None => StepRule::RowAbsmax,
            Some(bits) => step_for(&path, &matrix, bits)?,
        };
        let compressed = CompressedTensor::compress(&path, &weight, rule, EncodeOptions::default())?;
        bytes += compressed.stats().compressed_bytes;
        let bias = linear.bs.as_ref().map(Tensor::detach);
        let layer = CompressedLinear::new(&(vs / index), &compressed, bias.as_ref())?;
        layers.push(Box::new(layer));
    }
    Ok((Network { layers }, bytes))
}

/// The step at which the matrix takes `bits` a weight.
fn step_for(path: &str, matrix: &Matrix, bits: f64) -> Result<StepRule> {
    let sample = RateSample::new(path, matrix, EncodeOptions::default())?;
    let exponent = codecllm::codec::solve_exponent(std::slice::from_ref(&sample), 0, sample.weights(), bits)?;
    Ok(StepRule::Step(sample.step(exponent)))
}

/// Points on two spirals, and which of them each is on.
fn spirals() -> (Tensor, Tensor) {
    let on = Tensor::arange(POINTS, (Kind::Int64, Device::Cpu)).remainder(2);
    let turn = Tensor::rand([POINTS], (Kind::Float, Device::Cpu)) * 9.0 + 1.0;
    let angle = &turn + &on * std::f64::consts::PI;
    let points = Tensor::stack(&[&turn * angle.cos(), &turn * angle.sin()], 1) / 10.0;
    (points + Tensor::randn([POINTS, 2], (Kind::Float, Device::Cpu)) * 0.06, on)
}

fn train(vs: &nn::VarStore, linears: &[nn::Linear]) -> Result<()> {
    let (mut optimizer, network) = (nn::Adam::default().build(vs, 3e-3)?, network_of(linears));
    let (points, on) = spirals();
    for _ in 0..STEPS {
        optimizer.backward_step(&network.forward(&points).cross_entropy_for_logits(&on));
    }
    Ok(())
}

fn report(name: &str, network: &Network, bytes: usize) {
    tch::manual_seed(8); // other points than those of the training
    let (points, on) = spirals();
    let right = 100.0 * tch::no_grad(|| network.forward(&points).accuracy_for_logits(&on)).double_value(&[]);
    println!("{:9} {right:.1} % of {POINTS} points right, {:.2} MB", format!("{name}:"), bytes as f64 / 1e6);
}

//! Model directories: what is written is read back, and what is broken is named, never half-written.

use std::fs;
use std::path::Path;

use codecllm::checkpoint::{compress, decompress, CompressOptions, Reader, Writer};
use codecllm::{Error, ErrorKind};
use proptest::prelude::*;
use safetensors::Dtype;
use tch::Kind;

/// A safetensors file with `header` as its JSON and `data` behind it.
fn file_bytes(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Opens a directory whose only file is `model.safetensors` with these bytes.
fn open_bytes(bytes: &[u8]) -> codecllm::Result<Reader> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    Reader::open(dir.path())
}

fn error_of(bytes: &[u8]) -> Error {
    open_bytes(bytes).expect_err("a broken file was accepted")
}

/// The names in a directory, hidden ones included, sorted.
fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const TWO: &str = r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b.weight":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}"#;
const TWO_DATA: [u8; 11] = [0, 0, 128, 63, 0, 0, 0, 192, 7, 8, 9];

#[test]
fn reads_what_is_there() {
    let reader = open_bytes(&file_bytes(TWO, &TWO_DATA)).unwrap();
    assert_eq!(reader.names().collect::<Vec<_>>(), ["a.weight", "b.weight"]);
    assert_eq!(reader.metadata()["format"], "pt");
    let a = reader.read("a.weight").unwrap();
    assert_eq!((a.kind(), a.size()), (Kind::Float, vec![2, 1]));
    assert_eq!(Vec::<f32>::try_from(a.view(-1)).unwrap(), [1.0, -2.0]);
    assert_eq!(reader.read_bytes("b.weight").unwrap(), [7, 8, 9]);
    let info = reader.info("b.weight").unwrap();
    assert_eq!((info.dtype, info.shape.as_slice(), info.bytes), (Dtype::U8, &[3][..], 3));
}

#[test]
fn unknown_name_is_named() {
    let error = open_bytes(&file_bytes(TWO, &TWO_DATA)).unwrap().read("c.weight").unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, "c.weight"));
}

#[test]
fn every_prefix_is_truncated() {
    let whole = file_bytes(TWO, &TWO_DATA);
    for length in 0..whole.len() {
        let error = error_of(&whole[..length]);
        assert_eq!(error.kind(), ErrorKind::Truncated, "prefix of {length} bytes: {error}");
    }
    let error = error_of(&whole[..whole.len() - 1]);
    assert!(error.to_string().starts_with("b.weight: needs 3 bytes, 2 remain in "), "{error}");
    assert!(error.to_string().ends_with("model.safetensors (file truncated?)"), "{error}");
}

#[test]
fn a_header_that_lies_is_corrupt() {
    let weight = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
    };
    let pair = |offsets: [u64; 4]| {
        let [a, b, c, d] = offsets;
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[{a},{b}]}},"b":{{"dtype":"U8","shape":[4],"data_offsets":[{c},{d}]}}}}"#
        )
    };
    let cases = [
        ("hole before", weight("[1]", 4, 8), 8),
        ("backwards", weight("[1]", 4, 0), 4),
        ("shape and bytes differ", weight("[2]", 0, 4), 4),
        ("product overflows", weight("[4294967296,4294967296,4294967296]", 0, 4), 4),
        ("negative shape", weight("[-1]", 0, 4), 4),
        ("unknown dtype", weight("[1]", 0, 4).replace("F32", "F31"), 4),
        ("overlap", pair([0, 4, 2, 6]), 6),
        ("hole between", pair([0, 4, 6, 10]), 10),
        ("same place twice", pair([0, 4, 0, 4]), 4),
        ("bytes behind the last tensor", weight("[1]", 0, 4), 5),
        ("not json", "{\"w\":".to_owned(), 0),
        ("not an object", "[]".to_owned(), 0),
    ];
    for (what, header, data) in cases {
        let error = error_of(&file_bytes(&header, &vec![0; data]));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn header_length_is_checked_before_it_is_used() {
    let with_length = |length: u64| {
        let mut bytes = file_bytes(TWO, &TWO_DATA);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        error_of(&bytes)
    };
    assert_eq!(with_length(u64::MAX).kind(), ErrorKind::Corrupt);
    assert_eq!(with_length(100_000_001).kind(), ErrorKind::Corrupt);
    let long = with_length(1000);
    assert_eq!(long.kind(), ErrorKind::Truncated);
    assert!(long.to_string().contains("header needs 1000 bytes, "), "{long}");
    assert_eq!(error_of(&file_bytes("\u{7f}", &[])).kind(), ErrorKind::Corrupt);
}

#[test]
fn a_dtype_torch_does_not_have_is_unsupported() {
    let header = r#"{"w":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}}"#;
    let reader = open_bytes(&file_bytes(header, &[0; 8])).unwrap();
    let error = reader.read("w").unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Unsupported, "w"));
    assert_eq!(reader.read_bytes("w").unwrap(), [0; 8]);
}

#[test]
fn file_cut_after_opening_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = file_bytes(TWO, &TWO_DATA);
    fs::write(&path, &whole).unwrap();
    let reader = Reader::open(dir.path()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(whole.len() as u64 - 2).unwrap();
    let error = reader.read("b.weight").unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Truncated, "b.weight"));
}

#[test]
fn missing_directory_and_model_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nowhere");
    let error = Reader::open(&missing).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Io, missing.to_str().unwrap()));
    assert!(Reader::open(dir.path())
        .unwrap_err()
        .to_string()
        .contains("holds neither model.safetensors nor"));
}

/// Writes three tensors in two shards and returns their directory.
fn sharded() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path().join("m")).unwrap().with_max_shard_bytes(8);
    writer.metadata("made-by", "test");
    writer.add("x", Dtype::U8, &[5], &[1, 2, 3, 4, 5]).unwrap();
    writer.add("y", Dtype::F16, &[1], &[0, 60]).unwrap();
    writer.add("z", Dtype::I32, &[2], &[9, 0, 0, 0, 255, 255, 255, 255]).unwrap();
    writer.finish().unwrap();
    dir
}

#[test]
fn shards_are_read_in_order() {
    let dir = sharded();
    let out = dir.path().join("m");
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    assert_eq!(listing(&out), [first, second, "model.safetensors.index.json"]);
    let reader = Reader::open(&out).unwrap();
    assert_eq!(reader.names().collect::<Vec<_>>(), ["y", "x", "z"], "wide elements come first in a shard");
    assert_eq!(reader.read("y").unwrap().double_value(&[0]), 1.0);
    assert_eq!(reader.read("z").unwrap().int64_value(&[1]), -1);
    assert_eq!(reader.info("z").unwrap().file, out.join(second));
    assert_eq!(reader.metadata()["made-by"], "test");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!((&index["metadata"]["total_size"], &index["weight_map"]["x"]), (&15.into(), &first.into()));
}

#[test]
fn a_missing_shard_is_named() {
    let dir = sharded();
    let shard = dir.path().join("m/model-00002-of-00002.safetensors");
    fs::remove_file(&shard).unwrap();
    let error = Reader::open(dir.path().join("m")).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Io, shard.to_str().unwrap()));
}

/// Changes the index of [`sharded`] and opens it.
fn open_with_index(edit: impl Fn(String) -> String) -> Error {
    let dir = sharded();
    let path = dir.path().join("m/model.safetensors.index.json");
    fs::write(&path, edit(fs::read_to_string(&path).unwrap())).unwrap();
    Reader::open(dir.path().join("m")).expect_err("a broken index was accepted")
}

#[test]
fn an_index_that_lies_is_corrupt() {
    let absent = open_with_index(|index| index.replace("\"z\"", "\"absent\""));
    assert_eq!((absent.kind(), absent.subject()), (ErrorKind::Corrupt, "absent"));
    let moved = open_with_index(|index| index.replace("\"z\": \"model-00002", "\"z\": \"model-00001"));
    assert_eq!((moved.kind(), moved.subject()), (ErrorKind::Corrupt, "z"));
    let outside = open_with_index(|index| index.replace("model-00002", "../m/model-00002"));
    assert_eq!(outside.kind(), ErrorKind::Corrupt, "{outside}");
    assert_eq!(open_with_index(|_| "{}".to_owned()).kind(), ErrorKind::Corrupt);
}

#[test]
fn a_tensor_in_two_shards_is_corrupt() {
    let dir = sharded();
    let [first, second] = [1, 2].map(|n| dir.path().join(format!("m/model-0000{n}-of-00002.safetensors")));
    fs::copy(first, second).unwrap();
    let error = Reader::open(dir.path().join("m")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("wanted once"), "{error}");
}

#[test]
fn an_existing_output_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    fs::create_dir(&out).unwrap();
    let error = Writer::create(&out).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, out.to_str().unwrap()));
    assert!(error.to_string().ends_with("output directory exists; choose another directory or remove it"));
    assert_eq!(listing(dir.path()), ["m"]);
}

#[test]
fn an_output_that_appears_meanwhile_is_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let writer = Writer::create(&out).unwrap();
    fs::write(&out, "mine").unwrap();
    assert_eq!(writer.finish().unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(fs::read_to_string(&out).unwrap(), "mine");
    assert_eq!(listing(dir.path()), ["m"]);
}

#[test]
fn a_writer_dropped_halfway_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path().join("m")).unwrap();
    writer.add("x", Dtype::U8, &[1], &[1]).unwrap();
    writer.write_file("config.json", b"{}").unwrap();
    assert!(!dir.path().join("m").exists(), "the directory must not appear before it is complete");
    drop(writer);
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path().join("m")).unwrap();
    let error = writer.add("x", Dtype::F32, &[2], &[0; 7]).unwrap_err();
    assert_eq!(error.to_string(), "x: got 7 bytes, wanted 8 for shape [2] of F32");
    assert!(writer.add("x", Dtype::F32, &[usize::MAX, 2], &[]).is_err());
    writer.add("x", Dtype::U8, &[0], &[]).unwrap();
    assert!(writer.add("x", Dtype::U8, &[0], &[]).is_err(), "one name twice");
    assert!(writer.add("__metadata__", Dtype::U8, &[0], &[]).is_err());
    assert!(writer.write_file("../x", b"").is_err());
    writer.write_file("a.txt", b"1").unwrap();
    assert!(writer.write_file("a.txt", b"2").is_err(), "one file twice");
}

#[test]
fn files_are_copied_verbatim_and_sizes_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    fs::write(&config, "{ \"a\":1 }\n").unwrap();
    let mut writer = Writer::create(dir.path().join("m")).unwrap();
    writer.copy_file(&config).unwrap();
    writer.add("odd", Dtype::U8, &[3], &[1, 2, 3]).unwrap();
    writer.add("wide", Dtype::F32, &[1], &[0, 0, 128, 63]).unwrap();
    writer.add("later", Dtype::U8, &[1], &[4]).unwrap();
    writer.add("half", Dtype::F16, &[1], &[0, 60]).unwrap();
    let bytes = writer.finish().unwrap();
    let out = dir.path().join("m");
    assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "{ \"a\":1 }\n");
    let file = fs::read(out.join("model.safetensors")).unwrap();
    assert_eq!(bytes, file.len() as u64);
    // The format's own reader agrees, and every element is aligned.
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.tensor("wide").unwrap().data(), [0, 0, 128, 63]);
    let offset = |name: &str| tensors.tensor(name).unwrap().data().as_ptr() as usize - file.as_ptr() as usize;
    assert_eq!((offset("wide") % 8, offset("half") % 2), (0, 0));
    assert!(offset("odd") < offset("later"), "tensors of one width keep their order");
    assert_eq!(tensors.tensor("odd").unwrap().data(), [1, 2, 3]);
}

/// A model to compress, and a directory beside it.
fn small_model(parent: &Path) -> [std::path::PathBuf; 2] {
    let model = parent.join("model");
    let mut writer = Writer::create(&model).unwrap();
    let floats: Vec<u8> = (0..17 * 40).flat_map(|n| (n as f32).sin().to_le_bytes()).collect();
    writer.add("m.a.weight", Dtype::F32, &[17, 40], &floats).unwrap();
    writer.add("m.norm.weight", Dtype::F32, &[7], &floats[..28]).unwrap();
    writer.write_file("config.json", b"{}").unwrap();
    writer.write_file("tokenizer.json", b"{}").unwrap();
    writer.finish().unwrap();
    [model, parent.join("out")]
}

#[test]
fn a_directory_that_changes_while_it_is_read_is_noticed() {
    let parent = tempfile::tempdir().unwrap();
    let [model, out] = small_model(parent.path());
    let compressed = parent.path().join("compressed");
    compress(&model, &compressed, &CompressOptions::default(), &mut |_| {}).unwrap();
    let before = listing(parent.path());
    // Whatever is written after the first tensor was read.
    for (dir, file) in
        [(&model, "config.json"), (&model, "model.safetensors"), (&compressed, "tokenizer.json")]
    {
        let path = dir.join(file);
        let bytes = fs::read(&path).unwrap();
        let mut write =
            |_: codecllm::checkpoint::Progress<'_>| fs::write(&path, [&bytes[..], b"\n"].concat()).unwrap();
        let error = match dir == &model {
            true => compress(dir, &out, &CompressOptions::default(), &mut write).unwrap_err(),
            false => decompress(dir, &out, &mut write).unwrap_err(),
        };
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Corrupt, path.to_str().unwrap()));
        assert!(error.to_string().contains("while the directory was read; run again"), "{error}");
        assert_eq!(listing(parent.path()), before);
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn containers_of_before_files_had_checksums_are_read() {
    let parent = tempfile::tempdir().unwrap();
    let [model, out] = small_model(parent.path());
    compress(&model, &out, &CompressOptions::default(), &mut |_| {}).unwrap();
    let reader = Reader::open(&out).unwrap();
    let old = parent.path().join("old");
    let mut writer = Writer::create(&old).unwrap();
    for (key, value) in reader.metadata().iter().filter(|(key, _)| !key.starts_with("codecllm.file.")) {
        writer.metadata(key, if key == "codecllm.header" { "0000000000000000" } else { value });
    }
    for name in reader.names() {
        let info = reader.info(name).unwrap();
        writer.add(name, info.dtype, &info.shape, &reader.read_bytes(name).unwrap()).unwrap();
    }
    writer.write_file("config.json", b"{ }").unwrap();
    writer.finish().unwrap();
    assert!(codecllm::checkpoint::verify(&old, None, &mut |_| {}).unwrap().ok);
    decompress(&old, parent.path().join("back"), &mut |_| {}).unwrap();
}

fn any_dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::U8, Dtype::I64])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_checkpoint_comes_back(
        tensors in prop::collection::vec((any_dtype(), prop::collection::vec(0usize..5, 0..4)), 0..8),
        limit in 1u64..300,
        seed in any::<u8>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path().join("m")).unwrap().with_max_shard_bytes(limit);
        let mut wanted = Vec::new();
        for (i, (dtype, shape)) in tensors.iter().enumerate() {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let data: Vec<u8> = (0..bytes).map(|b| (b as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            let name = format!("layer.{i}.\"quoted\"\n\u{e9}");
            writer.add(&name, *dtype, shape, &data).unwrap();
            wanted.push((name, *dtype, shape.clone(), data));
        }
        let total = writer.finish().unwrap();
        let out = dir.path().join("m");
        let on_disk: u64 = listing(&out).iter().filter(|n| n.ends_with(".safetensors"))
            .map(|n| fs::metadata(out.join(n)).unwrap().len()).sum();
        prop_assert_eq!(total, on_disk);
        for name in listing(&out).iter().filter(|n| n.ends_with(".safetensors")) {
            let header_bytes = fs::read(out.join(name)).unwrap()[..8].try_into().unwrap();
            prop_assert_eq!(u64::from_le_bytes(header_bytes) % 8, 0, "data starts aligned");
        }
        let reader = Reader::open(&out).unwrap();
        prop_assert_eq!(reader.names().count(), wanted.len());
        for (name, dtype, shape, data) in wanted {
            let info = reader.info(&name).unwrap();
            prop_assert_eq!((info.dtype, &info.shape), (dtype, &shape));
            prop_assert_eq!(reader.read_bytes(&name).unwrap(), data);
            let size: Vec<_> = reader.read(&name).unwrap().size().iter().map(|&n| n as usize).collect();
            prop_assert_eq!(size, shape);
        }
    }

    #[test]
    fn no_flipped_header_byte_panics(index in 0usize..150, bit in 0u8..8) {
        let mut bytes = file_bytes(TWO, &TWO_DATA);
        bytes[index] ^= 1 << bit;
        if let Ok(reader) = open_bytes(&bytes) {
            for name in reader.names() {
                prop_assert!(reader.info(name).unwrap().bytes <= TWO_DATA.len());
            }
        }
    }
}

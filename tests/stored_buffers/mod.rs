//! The buffers of a compressed matrix as a container stores them.

use codecllm::checkpoint::Reader;
use codecllm::codec::Buffers;

/// Those of the matrix at `path`.
pub fn stored_buffers(reader: &Reader, path: &str) -> Buffers {
    let read = |name: &str| reader.read_bytes(&format!("{path}.{name}")).unwrap();
    Buffers {
        header: read("header"),
        scales: read("scales"),
        tables: read("tables"),
        tiles: read("tiles"),
        payload: read("payload"),
    }
}

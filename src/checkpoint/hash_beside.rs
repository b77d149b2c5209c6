//! Reading and hashing at the same time: another thread hashes what has been read, so that checksums cost a core and hardly any time.

use std::sync::mpsc;

use xxhash_rust::xxh3::Xxh3;

use crate::error::Result;

/// What is read at a time where the same thread hashes it: a part of a core's second cache.
const PIECE_BYTES: usize = 1 << 16;
/// What is read at a time where another thread hashes it: large enough that handing it over costs nothing beside it.
const SHARED_PIECE_BYTES: usize = 1 << 18;
/// From so many bytes on it pays to wake another thread.
const SHARED_BYTES: usize = 1 << 20;

/// Fills `data` from its begin to its end by calls of `read`; every hasher sees all of it, in order.
pub(super) fn read_hashed(
    data: &mut [u8],
    hashers: &mut [&mut Xxh3],
    mut read: impl FnMut(&mut [u8]) -> Result<()>,
) -> Result<()> {
    if hashers.is_empty() || data.len() < SHARED_BYTES {
        return data.chunks_mut(PIECE_BYTES).try_for_each(|piece| {
            read(piece)?;
            hashers.iter_mut().for_each(|hasher| hasher.update(piece));
            Ok(())
        });
    }
    let (filled, pieces) = mpsc::channel::<&[u8]>();
    rayon::in_place_scope(|scope| {
        scope.spawn(|_| {
            for piece in pieces {
                hashers.iter_mut().for_each(|hasher| hasher.update(piece));
            }
        });
        // Its end, also by an error, ends the other thread's loop.
        let filled = filled;
        data.chunks_mut(SHARED_PIECE_BYTES).try_for_each(|piece| {
            read(piece)?;
            // Without a receiver that thread has panicked, and so does the end of the scope.
            let _ = filled.send(piece);
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::error::Error;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|n| (n.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect()
    }

    /// Reads `source` with so many hashers, and gives what was read and their digests.
    fn copy(source: &[u8], hashers: usize) -> (Vec<u8>, Vec<u64>) {
        let mut hashers = vec![Xxh3::new(); hashers];
        let (mut data, mut rest) = (vec![0; source.len()], source);
        read_hashed(&mut data, &mut hashers.iter_mut().collect::<Vec<_>>(), |piece| {
            piece.copy_from_slice(rest.split_off(..piece.len()).unwrap());
            Ok(())
        })
        .unwrap();
        (data, hashers.iter().map(Xxh3::digest).collect())
    }

    #[test]
    fn every_byte_is_read_and_hashed_in_order() {
        for count in [0, 1, PIECE_BYTES + 1, SHARED_BYTES - 1, SHARED_BYTES, 5 * SHARED_PIECE_BYTES + 77] {
            let source = bytes(count);
            for hashers in 0..3 {
                let (data, digests) = copy(&source, hashers);
                assert!(data == source, "{count}");
                assert_eq!(digests, vec![xxh3_64(&source); hashers], "{count}");
            }
        }
    }

    #[test]
    fn on_a_pool_of_one_thread_it_ends_too() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let source = bytes(3 * SHARED_BYTES);
        let (_, digests) = pool.install(|| copy(&source, 1));
        assert_eq!(digests, [xxh3_64(&source)]);
    }

    #[test]
    fn an_error_ends_both_threads() {
        let mut data = vec![0; 4 * SHARED_BYTES];
        let mut calls = 0;
        let result = read_hashed(&mut data, &mut [&mut Xxh3::new()], |_| {
            calls += 1;
            if calls == 3 {
                Err(Error::truncated("w", "ends"))
            } else {
                Ok(())
            }
        });
        assert_eq!((result.unwrap_err().subject(), calls), ("w", 3));
    }
}

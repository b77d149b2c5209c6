//! Where keys and values of sequences lie, for the kernels that write and read them.

use tch::{Kind, Tensor};

use super::launcher::{int, Address, Launcher};
use crate::error::{Error, Result};

const SUBJECT: &str = "key-value cache";

/// One layer's keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachePlanes<'a> {
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
    /// Without it each sequence has one page for all its slots, and keys and values are `[batch, kv_heads, capacity, head_dim]`;
    /// with it they are `[kv_heads, slots, head_dim]`, a page behind the other.
    pub(crate) table: Option<PageTable<'a>>,
}

/// Which pages sequences have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageTable<'a> {
    /// `[batch, most pages of a sequence]` (`Int`), each sequence's in order. All must be pages of the planes: the kernels keep to
    /// the planes whatever is here, but not to a sequence's own pages.
    pub(crate) pages: &'a Tensor,
    /// Slots of a page: a power of two, at least 16, which attention takes in at once.
    pub(crate) page_tokens: i64,
}

/// The kernels' `Pages`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pages {
    table: Address,
    per_sequence: i32,
    count: i32,
    shift: i32,
    capacity: i32,
    page_rows: i64,
    head_rows: i64,
}

/// Planes as the kernels take them.
pub(super) struct PlaneAddresses {
    pub(super) keys: Address,
    pub(super) values: Address,
    pub(super) pages: Pages,
}

impl CachePlanes<'_> {
    /// `[kv_heads, head_dim]`.
    pub(super) fn heads(&self) -> Result<[i64; 2]> {
        match (self.keys.size().as_slice(), self.table.is_some()) {
            (&[_, kv_heads, _, head_dim], false) | (&[kv_heads, _, head_dim], true) => {
                Ok([kv_heads, head_dim])
            }
            (size, _) => Err(Error::invalid(
                SUBJECT,
                format!(
                    "shape {size:?}, wanted [batch, kv_heads, capacity, head_dim], or [kv_heads, slots, head_dim] with a table"
                ),
            )),
        }
    }

    /// The addresses for `batch` sequences in dtype `kind`.
    pub(super) fn addresses(&self, launcher: &Launcher, kind: Kind, batch: i64) -> Result<PlaneAddresses> {
        let size = self.keys.size();
        let pages = match self.table {
            Some(table) => table.pages(launcher, &size, batch)?,
            None => one_page_each(&size, batch)?,
        };
        Ok(PlaneAddresses {
            keys: launcher.address("cached keys", self.keys, kind, &size)?,
            values: launcher.address("cached values", self.values, kind, &size)?,
            pages,
        })
    }
}

impl PageTable<'_> {
    fn pages(&self, launcher: &Launcher, planes: &[i64], batch: i64) -> Result<Pages> {
        let &[_, slots, _] = planes else {
            return Err(Error::invalid(
                SUBJECT,
                format!("shape {planes:?}, wanted [kv_heads, slots, head_dim]"),
            ));
        };
        let (per_sequence, page_tokens) = (self.pages.size().last().copied().unwrap_or(0), self.page_tokens);
        let table = launcher.address("page table", self.pages, Kind::Int, &[batch, per_sequence])?;
        paged(table, [per_sequence, page_tokens, slots])
    }
}

fn paged(table: Address, [per_sequence, page_tokens, slots]: [i64; 3]) -> Result<Pages> {
    let even = page_tokens >= 16 && u64::try_from(page_tokens).is_ok_and(u64::is_power_of_two);
    if !even || per_sequence < 1 || slots < 1 || slots % page_tokens != 0 {
        return Err(Error::invalid(
            SUBJECT,
            format!(
                "{slots} slots in pages of {page_tokens}, {per_sequence} pages a sequence; wanted pages of a power of two from 16 \
                 on that fill the slots, and at least one page a sequence"
            ),
        ));
    }
    Ok(Pages {
        table,
        per_sequence: int("pages of a sequence", per_sequence)?,
        count: int("pages", slots / page_tokens)?,
        shift: page_tokens.trailing_zeros() as i32,
        capacity: int("capacity", per_sequence.saturating_mul(page_tokens))?,
        page_rows: page_tokens,
        head_rows: slots,
    })
}

fn one_page_each(planes: &[i64], wanted: i64) -> Result<Pages> {
    match planes {
        &[batch, kv_heads, capacity, _] if batch == wanted && capacity > 0 => Ok(Pages {
            table: std::ptr::null_mut(),
            per_sequence: 1,
            count: int("batch", batch)?,
            // Every slot is in page 0 of its sequence.
            shift: 31,
            capacity: int("capacity", capacity)?,
            page_rows: kv_heads * capacity,
            head_rows: capacity,
        }),
        other => Err(Error::invalid(
            SUBJECT,
            format!("shape {other:?}, wanted [{wanted}, kv_heads, capacity, head_dim]"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Address = 16 as Address;

    #[test]
    fn pages_are_laid_out_as_the_kernels_read_them() {
        // Offsets of the kernels' struct: a pointer, four ints, two 64-bit integers.
        assert_eq!(std::mem::size_of::<Pages>(), 40);
        assert_eq!(std::mem::offset_of!(Pages, shift), 16);
        assert_eq!(std::mem::offset_of!(Pages, page_rows), 24);
        let pages = paged(TABLE, [5, 32, 96]).unwrap();
        assert_eq!((pages.count, pages.shift, pages.capacity), (3, 5, 160));
        assert_eq!((pages.page_rows, pages.head_rows), (32, 96));
        let whole = one_page_each(&[3, 8, 700, 64], 3).unwrap();
        assert_eq!((whole.count, whole.shift, whole.capacity), (3, 31, 700));
        assert_eq!((whole.page_rows, whole.head_rows, whole.table.is_null()), (5600, 700, true));
    }

    #[test]
    fn pages_that_a_kernel_would_misread_are_refused() {
        for sizes in [[0, 32, 96], [1, 8, 96], [1, 48, 96], [1, 32, 100], [1, 32, 0], [1 << 40, 32, 96]] {
            assert!(paged(TABLE, sizes).is_err(), "{sizes:?}");
        }
        assert!(one_page_each(&[3, 8, 700, 64], 2).is_err());
        assert!(one_page_each(&[8, 700, 64], 8).is_err());
        assert!(one_page_each(&[3, 8, 0, 64], 3).is_err());
    }
}

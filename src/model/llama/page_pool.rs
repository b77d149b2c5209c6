//! Which pages of a pool are free.

/// The pages `0..len` of a pool, each free or somebody's.
#[derive(Debug)]
pub(super) struct PagePool {
    free: Vec<bool>,
    count: usize,
}

impl PagePool {
    /// All of `pages` pages free.
    pub(super) fn new(pages: usize) -> Self {
        Self { free: vec![true; pages], count: pages }
    }

    pub(super) fn len(&self) -> usize {
        self.free.len()
    }

    pub(super) fn free(&self) -> usize {
        self.count
    }

    /// Takes `count` pages: neighbors where there are so many, else the lowest ones; none at all where too few are free.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        if count > self.count {
            return None;
        }
        let pages: Vec<usize> = match self.neighbors(count) {
            Some(first) => (first..first + count).collect(),
            None => (0..self.free.len()).filter(|&page| self.free[page]).take(count).collect(),
        };
        pages.iter().for_each(|&page| self.free[page] = false);
        self.count -= count;
        Some(pages.into_iter().map(|page| page as u32).collect())
    }

    /// Takes pages back.
    pub(super) fn give_back(&mut self, pages: &[u32]) {
        for &page in pages {
            if let Some(free @ false) = self.free.get_mut(page as usize) {
                *free = true;
                self.count += 1;
            }
        }
    }

    /// The first of `count` free pages in a row.
    fn neighbors(&self, count: usize) -> Option<usize> {
        let mut run = 0;
        for (page, &free) in self.free.iter().enumerate() {
            if run == count {
                return Some(page - count);
            }
            run = if free { run + 1 } else { 0 };
        }
        (run >= count).then(|| self.free.len() - count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_neighbors_where_that_is_possible() {
        let mut pool = PagePool::new(10);
        let [a, b, c] = [3, 2, 4].map(|count| pool.take(count).unwrap());
        assert_eq!(
            (a.as_slice(), b.as_slice(), c.as_slice()),
            (&[0, 1, 2][..], &[3, 4][..], &[5, 6, 7, 8][..])
        );
        pool.give_back(&b);
        assert_eq!(pool.take(1).unwrap(), [3]);
        pool.give_back(&[3]);
        pool.give_back(&a);
        // 0 to 4 and 9 are free.
        assert_eq!(pool.take(5).unwrap(), [0, 1, 2, 3, 4]);
        pool.give_back(&[0, 1, 4]);
        assert_eq!(pool.take(4).unwrap(), [0, 1, 4, 9]);
        assert_eq!(pool.free(), 0);
        assert_eq!(pool.take(0).unwrap(), [0u32; 0]);
    }

    #[test]
    fn too_few_free_pages_change_nothing_and_a_page_comes_back_once() {
        let mut pool = PagePool::new(4);
        let taken = pool.take(3).unwrap();
        assert_eq!(pool.take(2), None);
        assert_eq!((pool.free(), pool.len()), (1, 4));
        pool.give_back(&taken);
        pool.give_back(&taken);
        pool.give_back(&[17]);
        assert_eq!(pool.free(), 4);
        assert_eq!(pool.take(4).unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn no_page_has_two_owners() {
        let mut pool = PagePool::new(23);
        let mut owned: Vec<Vec<u32>> = Vec::new();
        for step in 0..2000_usize {
            if step % 3 < 2 {
                owned.extend(pool.take(step * 7 % 6));
            } else if !owned.is_empty() {
                let pages = owned.swap_remove(step * 5 % owned.len());
                pool.give_back(&pages);
            }
            let mut pages: Vec<u32> = owned.iter().flatten().copied().collect();
            let count = pages.len();
            pages.sort_unstable();
            pages.dedup();
            assert_eq!((pages.len(), pool.free()), (count, 23 - count), "step {step}");
        }
    }
}

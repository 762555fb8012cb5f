//! The functions that are known: PostgreSQL's own that are safe on a standby, and those of the search extension.
//!
//! Invariant: a name is listed only if every one of its overloads is safe on a standby and safe to run twice, and
//! gives there what it gives on the primary. Must not know: where a call stands.
//!
//! The lists in `functions` are what `functions/catalogue.sql` gives on servers of each supported version; `make functions` writes
//! them, and `tests/builtin_functions.rs` holds them to the server at hand. A name counts from the version on since which it has
//! been there and safe without a break: on older ones it may be anybody's.

use std::ops::RangeInclusive;

/// The versions whose functions are known. Later ones are taken for the last of them.
pub const SUPPORTED_VERSIONS: RangeInclusive<u8> = 14..=18;

/// Start value of [`hash_step`].
const HASH_START: u32 = 0x811c_9dc5;

/// Adds one (already folded) byte to a name's hash.
#[inline]
const fn hash_step(hash: u32, byte: u8) -> u32 {
    (hash ^ byte as u32).wrapping_mul(0x0100_0193)
}

/// The slot where the search for a hash begins in a table of `size` slots, `size` a power of two.
#[inline]
const fn slot(hash: u32, size: usize) -> usize {
    (hash ^ (hash >> 15)) as usize & (size - 1)
}

/// Volatile but harmless (clocks, dice, naps, what is read past MVCC), by the version since which they have been there.
const HARMLESS_14: &str = "\
    clock_timestamp current_query gen_random_uuid lo_get pg_partition_ancestors pg_partition_tree pg_sleep pg_sleep_for \
    pg_sleep_until random timeofday";
const HARMLESS_16: &str =
    "array_sample array_shuffle json_array json_arrayagg json_object json_objectagg random_normal";
const HARMLESS_17: &str = "json_exists json_query json_scalar json_serialize json_value";
const HARMLESS_18: &str = "uuidv4 uuidv7";

/// All that is safe, with the version since which it has been.
const SAFE: [(u8, &str); 9] = [
    (14, include_str!("functions/since_14.txt")),
    (15, include_str!("functions/since_15.txt")),
    (16, include_str!("functions/since_16.txt")),
    (17, include_str!("functions/since_17.txt")),
    (18, include_str!("functions/since_18.txt")),
    (14, HARMLESS_14),
    (16, HARMLESS_16),
    (17, HARMLESS_17),
    (18, HARMLESS_18),
];

/// Read functions of ParadeDB, in the schemas `pdb` and `paradedb`, volatile ones among them.
const SEARCH: &str = "\
    agg agg_fn aggregate all boolean boost const const_score disjunction_max empty exists fuzzy_phrase fuzzy_term \
    index_info index_segments indexes match match_conjunction match_disjunction merge_info more_like_this page_info \
    parse parse_with_field phrase phrase_prefix prox_array prox_clause prox_regex prox_term_in_order range range_term \
    regex regex_phrase schema score slop snippet snippet_positions snippets storage_info term term_set \
    term_with_operator tokenize tokenizer tokenizers vacuum_info verify_all_indexes verify_index version_info window_agg";

/// What depends on the node or the server process: never a standby's business, and a reason of its own.
const LOCAL: &str = "\
    pg_is_in_recovery pg_backend_pid pg_postmaster_start_time pg_conf_load_time inet_server_addr inet_server_port \
    inet_client_addr inet_client_port pg_is_wal_replay_paused pg_get_wal_replay_pause_state pg_wal_replay_pause \
    pg_wal_replay_resume pg_get_replication_slots pg_lock_status pg_cursor pg_prepared_statement pg_prepared_xact \
    pg_listening_channels pg_show_all_settings pg_config pg_blocking_pids pg_my_temp_schema pg_is_other_temp_schema \
    pg_relation_filepath pg_tablespace_location pg_tablespace_databases pg_read_file pg_read_binary_file pg_ls_dir \
    pg_stat_file pg_trigger_depth pg_current_snapshot txid_current_snapshot txid_current_if_assigned \
    pg_current_xact_id_if_assigned pg_export_snapshot pg_cancel_backend pg_terminate_backend \
    pg_log_backend_memory_contexts pg_get_backend_memory_contexts pg_available_extensions \
    pg_available_extension_versions pg_walfile_name pg_walfile_name_offset";

const BUILTIN_SLOTS: usize = 8192;
static BUILTIN: [u32; BUILTIN_SLOTS] = fill_all([0; BUILTIN_SLOTS], SAFE);
/// Functions of PostgreSQL that write, lock or keep state: what they do is known, so nobody need look for more.
const WRITING: &str = "\
    nextval setval currval lastval set_config setseed pg_notify pg_current_xact_id txid_current pg_advisory_lock \
    pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared pg_advisory_unlock \
    pg_advisory_unlock_shared pg_advisory_unlock_all pg_advisory_xact_lock pg_advisory_xact_lock_shared \
    pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared lo_create lo_creat lo_from_bytea lo_put lo_unlink \
    pg_logical_emit_message";

/// All others that PostgreSQL has in any version.
const UNSAFE: &str = include_str!("functions/unsafe.txt");

static UNSAFE_TABLE: [u32; 8192] = fill([0; 8192], UNSAFE, 0);
static WRITING_TABLE: [u32; 128] = fill([0; 128], WRITING, 0);
static SEARCH_TABLE: [u32; 128] = fill([0; 128], SEARCH, 0);
static LOCAL_TABLE: [u32; 128] = fill([0; 128], LOCAL, 0);

const fn fill_all<const N: usize, const L: usize>(mut table: [u32; N], lists: [(u8, &str); L]) -> [u32; N] {
    let mut list = 0;
    while list < L {
        table = fill(table, lists[list].1, list as u32);
        list += 1;
    }
    table
}

/// Adds the names in `text` to an open-addressed table; an entry is offset, list and length packed, 0 is free.
pub(super) const fn fill<const N: usize>(mut table: [u32; N], text: &str, list: u32) -> [u32; N] {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let mut hash = HASH_START;
        while at < bytes.len() && bytes[at] != b' ' && bytes[at] != b'\n' {
            hash = hash_step(hash, bytes[at]);
            at += 1;
        }
        let mut place = slot(hash, N);
        while table[place] != 0 {
            place = (place + 1) & (N - 1);
        }
        assert!(list < 1 << LIST_BITS && at - start < 1 << LENGTH_BITS);
        table[place] =
            (start as u32) << (LIST_BITS + LENGTH_BITS) | list << LENGTH_BITS | (at - start) as u32;
        at += 1;
    }
    table
}

const LENGTH_BITS: u32 = 7;
const LIST_BITS: u32 = 4;

/// In which of the lists the name is.
#[inline]
pub(super) fn find<const N: usize, const L: usize>(
    table: &[u32; N],
    lists: [(u8, &str); L],
    name: &Folded<'_>,
) -> Option<usize> {
    let mut place = slot(name.hash(), N);
    loop {
        let entry = table[place];
        if entry == 0 {
            return None;
        }
        let (start, length) =
            ((entry >> (LIST_BITS + LENGTH_BITS)) as usize, (entry & ((1 << LENGTH_BITS) - 1)) as usize);
        let list = (entry >> LENGTH_BITS & ((1 << LIST_BITS) - 1)) as usize;
        if name.is(&lists[list].1.as_bytes()[start..start + length]) {
            return Some(list);
        }
        place = (place + 1) & (N - 1);
    }
}

/// PostgreSQL's `NAMEDATALEN`, without the zero.
const NAME_BYTES_MAX: usize = 63;

/// A name as the server sees it: folded if it was unquoted, exact otherwise.
pub(super) struct Folded<'a> {
    text: &'a [u8],
    exact: bool,
}

impl<'a> Folded<'a> {
    /// An unquoted name.
    #[inline]
    pub(super) fn unquoted(text: &'a [u8]) -> Self {
        Self { text, exact: false }
    }

    /// What stands between the double quotes.
    #[inline]
    pub(super) fn quoted(text: &'a [u8]) -> Self {
        Self { text, exact: true }
    }

    /// The name as the catalogue has it, behind its schema and a dot if it has one; `None` for names that are too long for this.
    pub(super) fn with_key<T>(&self, schema: Option<&Self>, found: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let mut key = [0u8; 2 * NAME_BYTES_MAX + 1];
        let mut length = 0;
        let parts = [schema, Some(self)];
        for part in parts.into_iter().flatten() {
            if length > 0 {
                *key.get_mut(length)? = b'.';
                length += 1;
            }
            length += part.put(key.get_mut(length..)?)?;
        }
        Some(found(key.get(..length)?))
    }

    /// Writes the name as the catalogue has it: without the second of two quotes, cut short where it is too long. Gives its length.
    fn put(&self, place: &mut [u8]) -> Option<usize> {
        let mut length = 0;
        let mut quoted = false;
        for &byte in self.text {
            quoted = self.exact && byte == b'"' && !quoted;
            if quoted {
                continue;
            }
            // A character that does not fit whole is left out (`pg_mbcliplen`).
            if length == NAME_BYTES_MAX {
                while length > 0
                    && byte & 0xc0 == 0x80
                    && place.get(length - 1).is_some_and(|it| it & 0xc0 == 0x80)
                {
                    length -= 1;
                }
                let begun = byte & 0xc0 == 0x80;
                return Some(if begun { length.saturating_sub(1) } else { length });
            }
            *place.get_mut(length)? = if self.exact { byte } else { byte.to_ascii_lowercase() };
            length += 1;
        }
        Some(length)
    }

    /// The name for people.
    pub(super) fn spelt(&self) -> String {
        let text = String::from_utf8_lossy(self.text);
        if self.exact { text.into_owned() } else { text.to_lowercase() }
    }

    /// A hash of the folded bytes.
    pub(super) fn hash(&self) -> u32 {
        let folded = |byte: u8| if self.exact { byte } else { byte.to_ascii_lowercase() };
        self.text.iter().fold(HASH_START, |hash, &byte| hash_step(hash, folded(byte)))
    }

    /// Is it `name` (which is lower case)?
    #[inline]
    pub(super) fn is(&self, name: &[u8]) -> bool {
        if self.exact { self.text == name } else { self.text.eq_ignore_ascii_case(name) }
    }

    /// A quick look before `begins`: could it begin with this (lower-case) letter?
    #[inline]
    pub(super) fn may_begin(&self, letter: u8) -> bool {
        self.text.first().is_some_and(|first| first | 0x20 == letter)
    }

    /// Its first two letters in lower case.
    #[inline]
    pub(super) fn lower_pair(&self) -> Option<[u8; 2]> {
        self.text.first_chunk().map(|pair: &[u8; 2]| pair.map(|letter| letter.to_ascii_lowercase()))
    }

    /// Does it begin with `prefix` (which is lower case)?
    #[inline]
    pub(super) fn begins(&self, prefix: &[u8]) -> bool {
        self.text
            .get(..prefix.len())
            .is_some_and(|head| if self.exact { head == prefix } else { head.eq_ignore_ascii_case(prefix) })
    }

    #[inline]
    pub(super) fn is_one_of(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.is(name.as_bytes()))
    }
}

/// Is this a function of PostgreSQL itself, in this version, that is safe on a standby?
#[inline]
pub(super) fn is_builtin(name: &Folded<'_>, version: u8) -> bool {
    find(&BUILTIN, SAFE, name).is_some_and(|list| SAFE[list].0 <= version)
}

/// Is this one of PostgreSQL's own that is not known to be safe?
pub(super) fn is_unsafe_builtin(name: &Folded<'_>) -> bool {
    find(&UNSAFE_TABLE, [(0, UNSAFE)], name).is_some()
}

/// Is this a function of PostgreSQL whose effects are known?
pub(super) fn is_writing(name: &Folded<'_>) -> bool {
    find(&WRITING_TABLE, [(0, WRITING)], name).is_some()
}

/// All names that `is_writing` and `is_node_local` know.
#[cfg(test)]
pub(super) fn unsafe_names() -> impl Iterator<Item = &'static str> {
    let beginnings = ["pg_stat_get_x", "pg_last_x", "pg_current_wal_x"];
    WRITING.split_ascii_whitespace().chain(LOCAL.split_ascii_whitespace()).chain(beginnings)
}

/// Is this an operator that only ParadeDB's extension has?
#[inline]
pub(super) fn is_search_operator(operator: &[u8]) -> bool {
    matches!(operator, b"@@@" | b"|||" | b"&&&" | b"===" | b"###" | b"##" | b"##>")
}

pub(super) fn is_search(name: &Folded<'_>) -> bool {
    find(&SEARCH_TABLE, [(0, SEARCH)], name).is_some()
}

pub(super) fn is_node_local(name: &Folded<'_>) -> bool {
    find(&LOCAL_TABLE, [(0, LOCAL)], name).is_some()
        || name.begins(b"pg_stat_")
        || name.begins(b"pg_last_")
        || name.begins(b"pg_current_wal_")
}

/// Is the function `schema.name` (both as the catalogue spells them; no schema means `pg_catalog`) known to be safe in this version?
pub fn is_safe_function(schema: Option<&str>, name: &str, version: u8) -> bool {
    let name = Folded::quoted(name.as_bytes());
    match schema {
        None | Some("pg_catalog") => is_builtin(&name, version),
        Some("pdb" | "paradedb") => is_search(&name),
        Some(_) => false,
    }
}

/// Is this one of those that are volatile, and safe all the same?
pub fn is_harmless_function(name: &str) -> bool {
    let name = Folded::quoted(name.as_bytes());
    let harmless = [HARMLESS_14, HARMLESS_16, HARMLESS_17, HARMLESS_18];
    harmless.iter().any(|list| list.split_ascii_whitespace().any(|it| name.is(it.as_bytes())))
}

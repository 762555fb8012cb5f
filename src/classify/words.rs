//! The words that steer the shallow grammar, and their lookup by length and three of their letters.
//!
//! Invariant: a word that is not in the table is an ordinary name, and an ordinary name is never trusted.
//! Must not know: what a statement does with a word.

macro_rules! words {
    ($($variant:ident $text:literal)*) => {
        /// A word the grammar looks at; everything else is `Other`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Word { Other, $($variant),* }

        const WORDS: &[(&str, Word)] = &[$(($text, Word::$variant)),*];
    };
}

words! {
    Abort "abort" All "all" Alter "alter" Analyse "analyse" Analyze "analyze" And "and" Any "any" Array "array"
    As "as" Asymmetric "asymmetric" Begin "begin" Bernoulli "bernoulli" Between "between" Bit "bit" Both "both"
    By "by" Call "call" Case "case" Cast "cast" Chain "chain" Char "char" Character "character"
    Characteristics "characteristics" Checkpoint "checkpoint" Close "close" Cluster "cluster" Coalesce "coalesce"
    Collate "collate" Collation "collation" Comment "comment" Commit "commit" Committed "committed" Constraints "constraints" Copy "copy"
    Create "create" Cross "cross" Cube "cube" CurrentTime "current_time" CurrentTimestamp "current_timestamp"
    Deallocate "deallocate" Dec "dec" Decimal "decimal" Declare "declare" Deferrable "deferrable" Delete "delete"
    Discard "discard" Distinct "distinct" Do "do" Drop "drop" Else "else" End "end" Escape "escape" Except "except"
    Execute "execute" Exists "exists" Explain "explain" Extract "extract" Fetch "fetch" Filter "filter"
    Float "float" For "for" From "from" Full "full" Global "global" Grant "grant" Greatest "greatest" Group "group"
    Grouping "grouping" Having "having" Hold "hold" Ilike "ilike" Import "import" In "in" Inner "inner"
    Insert "insert" Intersect "intersect" Interval "interval" Into "into" Is "is" Isolation "isolation" Join "join"
    Key "key" Lateral "lateral" Leading "leading" Least "least" Left "left" Level "level" Like "like" Limit "limit"
    Listen "listen" Load "load" Local "local" Localtime "localtime" Localtimestamp "localtimestamp" Lock "lock"
    Materialized "materialized" Merge "merge" Move "move" National "national" Natural "natural" Nchar "nchar"
    No "no" Normalize "normalize" Not "not" Notify "notify" Nullif "nullif" Numeric "numeric" Off "off"
    Offset "offset" On "on" Only "only" Operator "operator" Or "or" Order "order" Ordinality "ordinality"
    Outer "outer" Over "over" Overlaps "overlaps" Overlay "overlay" Partition "partition" Placing "placing"
    Position "position" Prepare "prepare" Prepared "prepared" Program "program" Read "read" Reassign "reassign"
    Recursive "recursive" Refresh "refresh" Reindex "reindex" Release "release" Repeatable "repeatable"
    Reset "reset" Revoke "revoke" Right "right" Rollback "rollback" Rollup "rollup" Row "row" Savepoint "savepoint" Second "second"
    Security "security" Select "select" Serializable "serializable" Session "session" Set "set" Sets "sets"
    Share "share" Show "show" Similar "similar" Snapshot "snapshot" Some "some" Start "start" Stdin "stdin"
    Stdout "stdout" Substring "substring" Symmetric "symmetric" System "system" Table "table"
    Tablesample "tablesample" Temp "temp" Temporary "temporary" Then "then" Time "time" Timestamp "timestamp"
    To "to" Trailing "trailing" Transaction "transaction" Trim "trim" Truncate "truncate"
    Uncommitted "uncommitted" Union "union" Unlisten "unlisten" Update "update" Using "using" Vacuum "vacuum"
    Values "values" Varchar "varchar" Variadic "variadic" Varying "varying" Verbose "verbose" When "when"
    Where "where" Window "window" With "with" Within "within" Work "work" Write "write" Passing "passing"
    Version "version" Document "document" Content "content" Ref "ref" Path "path" Value "value" First "first" Next "next" Rows "rows" Range "range" Groups "groups" Xmlattributes "xmlattributes"
    Xmlconcat "xmlconcat" Xmlelement "xmlelement" Xmlexists "xmlexists" Xmlforest "xmlforest"
    Xmlnamespaces "xmlnamespaces" Xmlparse "xmlparse" Xmlpi "xmlpi" Xmlroot "xmlroot"
    Xmlserialize "xmlserialize" Xmltable "xmltable" Zone "zone"
}

const SLOTS: usize = 1024;
static TABLE: [u8; SLOTS] = build();

/// Bit 5 makes a letter lower case. No two bytes of identifiers other than the cases of a letter become equal by it.
const LOWER: u8 = 0x20;

/// Where the search for a word begins: by its length, and its first, middle and last letter.
#[inline]
const fn place_of(text: &[u8]) -> usize {
    let (first, middle, last) = (text[0] | LOWER, text[text.len() / 2] | LOWER, text[text.len() - 1] | LOWER);
    let key = first as u32 | (middle as u32) << 8 | (last as u32) << 16 | (text.len() as u32) << 24;
    (key.wrapping_mul(0x9e37_79b1) >> 22) as usize
}

const fn build() -> [u8; SLOTS] {
    assert!(WORDS.len() < 255);
    let mut table = [0u8; SLOTS];
    let mut index = 0;
    while index < WORDS.len() {
        let mut place = place_of(WORDS[index].0.as_bytes());
        while table[place] != 0 {
            place = (place + 1) & (SLOTS - 1);
        }
        table[place] = (index + 1) as u8;
        index += 1;
    }
    table
}

/// The word that `text`, the bytes of an identifier in any case, spells.
#[inline]
pub(super) fn word(text: &[u8]) -> Word {
    if text.is_empty() || text.len() > WORD_BYTES_MAX {
        return Word::Other;
    }
    let mut place = place_of(text);
    loop {
        let entry = TABLE[place];
        if entry == 0 {
            return Word::Other;
        }
        let (name, word) = WORDS[usize::from(entry) - 1];
        let name = name.as_bytes();
        if name.len() == text.len() && name.iter().zip(text).all(|(name, text)| name | LOWER == text | LOWER)
        {
            return word;
        }
        place = (place + 1) & (SLOTS - 1);
    }
}

/// Length of the longest word.
const WORD_BYTES_MAX: usize = {
    let (mut longest, mut index) = (0, 0);
    while index < WORDS.len() {
        if WORDS[index].0.len() > longest {
            longest = WORDS[index].0.len();
        }
        index += 1;
    }
    longest
};

impl Word {
    /// Reserved or column-name keywords that may stand before a parenthesis and can't be the name of a function.
    #[inline]
    pub(super) fn takes_parenthesis(self) -> bool {
        use Word::*;
        matches!(
            self,
            All | And
                | Any
                | Array
                | As
                | Asymmetric
                | Between
                | Both
                | Case
                | Cast
                | Coalesce
                | CurrentTime
                | CurrentTimestamp
                | Distinct
                | Else
                | Except
                | Exists
                | Extract
                | For
                | From
                | Greatest
                | Group
                | Grouping
                | Having
                | In
                | Intersect
                | Lateral
                | Leading
                | Least
                | Limit
                | Localtime
                | Localtimestamp
                | Normalize
                | Not
                | Nullif
                | Offset
                | On
                | Only
                | Or
                | Overlay
                | Placing
                | Position
                | Row
                | Select
                | Some
                | Substring
                | Symmetric
                | Table
                | Then
                | To
                | Trailing
                | Trim
                | Union
                | Using
                | Values
                | Variadic
                | When
                | Where
                | With
        ) || self.is_type()
            || self.is_xml()
    }

    /// Type names of the grammar itself: `numeric(10,2)` is a type with a modifier, never a call.
    #[inline]
    pub(super) fn is_type(self) -> bool {
        use Word::*;
        matches!(
            self,
            Bit | Char
                | Character
                | Dec
                | Decimal
                | Float
                | Interval
                | Nchar
                | Numeric
                | Time
                | Timestamp
                | Varchar
        )
    }

    /// Words that can't name a relation or a type without quotes.
    #[inline]
    pub(super) fn is_reserved(self) -> bool {
        use Word::*;
        matches!(
            self,
            All | Analyse
                | Analyze
                | And
                | Any
                | Array
                | As
                | Asymmetric
                | Both
                | Case
                | Cast
                | Collate
                | Create
                | Cross
                | CurrentTime
                | CurrentTimestamp
                | Deferrable
                | Distinct
                | Do
                | Else
                | End
                | Except
                | Fetch
                | For
                | From
                | Grant
                | Group
                | Having
                | In
                | Intersect
                | Into
                | Lateral
                | Leading
                | Limit
                | Localtime
                | Localtimestamp
                | Not
                | Offset
                | On
                | Only
                | Or
                | Order
                | Placing
                | Select
                | Some
                | Symmetric
                | Table
                | Then
                | To
                | Trailing
                | Union
                | Using
                | Variadic
                | When
                | Where
                | Window
                | With
        )
    }

    #[inline]
    fn is_xml(self) -> bool {
        use Word::*;
        matches!(
            self,
            Xmlattributes
                | Xmlconcat
                | Xmlelement
                | Xmlexists
                | Xmlforest
                | Xmlnamespaces
                | Xmlparse
                | Xmlpi
                | Xmlroot
                | Xmlserialize
                | Xmltable
        )
    }

    /// Words after which an operand has just ended: names, and keywords that stand for a value. Words that may be
    /// followed by an expression somewhere in the grammar (`PASSING f(x)`, `FETCH FIRST f(x)`) are not among them.
    #[inline]
    pub(super) fn ends_operand(self) -> bool {
        use Word::*;
        matches!(
            self,
            Other
                | End
                | CurrentTime
                | CurrentTimestamp
                | Localtime
                | Localtimestamp
                | Ordinality
                | Key
                | Level
                | Second
                | Session
                | System
                | Temp
                | Snapshot
                | Hold
                | Share
                | Work
                | Off
        ) || self.is_type()
    }
}

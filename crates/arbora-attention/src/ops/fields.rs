//! Structs whose fields are all of one type, as arrays.

/// `into_array` of a struct: its fields in their order, then those of a part.
macro_rules! into_array {
    ([$item:ty; $count:literal] $($field:ident),+ $(; $part:ident: $of:ident)?) => {
        pub(crate) fn into_array(self) -> [$item; $count] {
            let own = [$(self.$field),+].into_iter();
            let fields: Vec<_> = own$(.chain(self.$part.into_array()))?.collect();
            fields.try_into().ok().expect("as many fields as the array has")
        }
    };
}
pub(crate) use into_array;

/// `from_array` of a struct, the other way.
macro_rules! from_array {
    ([$item:ty; $count:literal] $($field:ident),+ $(; $part:ident: $of:ident)?) => {
        pub(crate) fn from_array(fields: [$item; $count]) -> Self {
            let [$($field),+ $(, $part @ ..)?] = fields;
            Self { $($field,)+ $($part: $of::from_array($part))? }
        }
    };
}
pub(crate) use from_array;

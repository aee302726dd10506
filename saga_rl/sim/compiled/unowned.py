"""Structrefs whose fields are uncounted: compiled code that reads one counts no references.

Numba's own structrefs count a reference, an atomic instruction, whenever a field that is an array or another structref
is read, and again when it is let go. The loops read such fields all the time, and what they read lives as long as the
world does. So here an array comes without its owner, which is right only for arrays that were `refs.unowned` when the
structref was made (the caller keeps them); and a structref inside another is put there as a `bare_pointer`, with
the owner in a field that nobody reads.
"""

from __future__ import annotations

from llvmlite.ir import Constant
from numba.core import cgutils, imputils, types
from numba.core.datamodel import default_manager, models
from numba.core.typing.templates import AttributeTemplate
from numba.experimental.structref import _Utils
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, lower_setattr_generic, register_model


class BarePointer(types.Type):
    """What a structref of type `struct` holds, while its owner lives."""

    def __init__(self, struct):
        self.struct = struct
        super().__init__(name=f"BarePointer({struct.name})")


register_model(BarePointer)(models.OpaqueModel)


@intrinsic
def bare_pointer(_context, ref):
    """A pointer to what the structref holds."""
    def codegen(context, builder, signature, args):
        return builder.bitcast(_Utils(context, builder, signature.args[0]).get_data_pointer(args[0]), cgutils.voidptr_t)

    return BarePointer(ref)(ref), codegen


def uncounted(struct):
    """Class decorator in place of `structref.register`. Only the constructor may set fields."""
    default_manager.register(struct, models.StructRefModel)

    @infer_getattr
    class Attribute(AttributeTemplate):
        key = struct

        def generic_resolve(self, typ, attr):
            return typ.field_dict.get(attr)

    @lower_getattr_generic(struct)
    def getattr_of(context, builder, typ, val, attr):
        return _read(context, builder, typ, _Utils(context, builder, typ).get_data_pointer(val), attr)

    @lower_setattr_generic(struct)
    def setattr_of(context, builder, sig, args, attr):
        typ, kind = sig.args
        field = typ.field_dict[attr]
        value = context.cast(builder, args[1], kind, field)
        context.nrt.incref(builder, field, value)
        setattr(_Utils(context, builder, typ).get_data_struct(args[0]), attr, value)

    return struct


@infer_getattr
class _BareAttribute(AttributeTemplate):
    key = BarePointer

    def generic_resolve(self, typ, attr):
        return typ.struct.field_dict.get(attr)


@lower_getattr_generic(BarePointer)
def _getattr_of_bare(context, builder, typ, val, attr):
    held = context.data_model_manager[typ.struct.get_data_type()].get_value_type()
    return _read(context, builder, typ.struct, builder.bitcast(val, held.as_pointer()), attr)


def _read(context, builder, struct, pointer, attr):
    value = getattr(cgutils.create_struct_proxy(struct.get_data_type())(context, builder, ref=pointer), attr)
    kind = struct.field_dict[attr]
    if isinstance(kind, types.Array):
        view = context.make_array(kind)(context, builder, value)
        view.meminfo = Constant(view.meminfo.type, None)  # numba takes out what counts references to nothing
        view.parent = Constant(view.parent.type, None)
        return view._getvalue()
    return imputils.impl_ret_borrowed(context, builder, kind, value)

"""tf.Example as protobuf itself writes it, without TensorFlow."""

import functools

import pytest


@functools.cache
def example_type():
  """Makes the message type of tensorflow/core/example/example.proto."""
  descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2", reason="needs protobuf")
  from google.protobuf import descriptor_pool, message_factory

  file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
  field = descriptor_pb2.FieldDescriptorProto

  def message(name, *fields, within=None):
    made = (within.nested_type if within else file.message_type).add(name=name)
    for number, (label, kind, own) in enumerate(fields, start=1):
      repeated = field.LABEL_REPEATED if kind < 0 else field.LABEL_OPTIONAL
      made.field.add(
        name=label, number=number, type=abs(kind), type_name=own or None, label=repeated
      )
    return made

  message("BytesList", ("value", -field.TYPE_BYTES, ""))
  message("FloatList", ("value", -field.TYPE_FLOAT, ""))
  message("Int64List", ("value", -field.TYPE_INT64, ""))
  lists = (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))
  message("Feature", *((name, field.TYPE_MESSAGE, f".tf.{kind}") for name, kind in lists))
  features = message("Features", ("feature", -field.TYPE_MESSAGE, ".tf.Features.Entry"))
  entry = message(
    "Entry",
    ("key", field.TYPE_STRING, ""),
    ("value", field.TYPE_MESSAGE, ".tf.Feature"),
    within=features,
  )
  entry.options.map_entry = False  # written alike, and in the order given
  message("Example", ("features", field.TYPE_MESSAGE, ".tf.Features"))
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def serialised(**features):
  """Serialises lists of bytes, floats or integers."""
  example = example_type()()
  for name, values in features.items():
    entry = example.features.feature.add(key=name)
    kinds = {bytes: "bytes_list", float: "float_list", int: "int64_list"}
    getattr(entry.value, kinds[type(values[0])]).value.extend(values)
  return example.SerializeToString()

"""The nodes, one file per step of the graph. Importing this package needs neither ComfyUI nor mediapipe."""

from . import crop, folders, model, parse, preview, region, sample, target, terms

_NODES = (*model.NODES, *parse.NODES, *crop.NODES, *region.NODES, *target.NODES, *sample.NODES, *terms.NODES, *preview.NODES)

NODE_CLASS_MAPPINGS = {f"FaceAnon_{node.__name__}": node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {f"FaceAnon_{node.__name__}": node.TITLE for node in _NODES}
WEB_DIRECTORY = "./web"

folders.model_folders()  # so that ComfyUI lists the folder from the start

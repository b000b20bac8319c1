"""x"""
def texts(): return ["Frame1 at 0.5s: a person walks through the scene"]*5
